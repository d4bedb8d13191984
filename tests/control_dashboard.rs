//! The dashboard and the report in headless Chromium: they draw, fit a phone, and change nothing unasked.
//!
//! `PARHELION_SCREENSHOTS=/tmp cargo test --test control_dashboard` leaves pictures to look at.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod control_support;

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use control_support::chromium::{Chromium, PATIENCE};
use control_support::{Port, filled_registry, step};
use parhelion::testing::wait::eventually;

/// The operation that the page asked for, within the time a browser may need.
fn asked(port: &Port) -> Vec<String> {
    let calls = || Some(port.recorder.take()).filter(|calls| !calls.is_empty());
    eventually(PATIENCE, calls).expect("the page asked for nothing")
}

fn fits(browser: &mut Chromium, what: &str) {
    let wide = browser.eval("document.documentElement.scrollWidth - innerWidth");
    assert_eq!(wide, 0, "{what} is wider than its window");
}

#[test]
fn fifty_mirrors_are_drawn_on_every_screen() {
    let Some(mut browser) = Chromium::start() else {
        return;
    };
    let port = Port::start(filled_registry(2, 50), None);
    port.state.set_ready(true);
    let (stop, stopped) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let stopped = stopped;
            let mut rng = fastrand::Rng::with_seed(5);
            // Ten times a second, until the test has seen enough.
            while stopped.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout)
            {
                for mirror in 0..50 {
                    step(&port.state.registry, 0, mirror, &mut rng, 40);
                }
            }
        });
        // What the test asserts must not keep the writer from its end.
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            browser.open(&port.url(), 1280, false);
            browser.until("document.querySelectorAll('#mirrors tr').length === 50");
            // Three latency charts with two lines each, as soon as two readings can be held against each other.
            browser.until(
                "[...document.querySelectorAll('#latency svg')].length === 3 && \
                 [...document.querySelectorAll('#latency path.line')].every(p => p.getAttribute('d').length > 8)",
            );
            browser.until("document.querySelectorAll('#flow rect').length >= 5");
            let clipped = browser.eval(
                "[...document.querySelectorAll('#flow text')].filter(t => { const a = t.getBBox(), b = t.ownerSVGElement.viewBox.baseVal; \
                 return a.x < -1 || a.x + a.width > b.width + 1; }).map(t => t.textContent).join()",
            );
            assert_eq!(clipped, "", "a label leaves the ledger's picture");
            browser.until("document.querySelectorAll('#kinds .kind').length >= 1");
            browser.until("document.querySelectorAll('#examples .example').length >= 1");
            for part in [
                "delivered",
                "dropped: queue full",
                "unexposed",
                "excluded",
                "Queued bytes",
                "p99.9",
            ] {
                let shown = browser.eval(&format!("document.body.textContent.includes('{part}')"));
                assert_eq!(shown, true, "{part} is not shown");
            }
            for (width, dark, name) in [
                (1280, false, "light"),
                (1280, true, "dark"),
                (390, false, "phone"),
                (390, true, "phone-dark"),
            ] {
                browser.look(width, dark);
                fits(&mut browser, name);
                browser.screenshot(&format!("dashboard-{name}"));
            }
            // A click on a head sorts by it, largest first.
            browser.eval("document.querySelectorAll('#heads button')[9].click()");
            browser.until(
                "document.querySelectorAll('#heads th')[9].getAttribute('aria-sort') === 'descending'",
            );
            browser.eval("document.querySelector('#filter').value = 'next49'; document.querySelector('#filter').oninput()");
            browser.until("document.querySelectorAll('#mirrors tr').length === 1");
        }));
        drop(stop);
        if let Err(failure) = seen {
            std::panic::resume_unwind(failure);
        }
    });
    assert_eq!(browser.complaints, Vec::<String>::new());
}

#[test]
fn nothing_changes_before_it_is_confirmed() {
    let Some(mut browser) = Chromium::start() else {
        return;
    };
    let port = Port::start(filled_registry(1, 1), None);
    browser.open(&port.url(), 1280, false);
    browser.until("!document.querySelector('#detail').hidden");
    let click = |browser: &mut Chromium, id: &str| {
        browser.until(&format!("!document.querySelector('#{id}').disabled"));
        browser.eval(&format!("document.querySelector('#{id}').click()"));
    };
    click(&mut browser, "pause");
    browser.until("document.querySelector('#ask').open");
    browser.screenshot("dashboard-asks");
    click(&mut browser, "ask-no");
    browser.until("!document.querySelector('#ask').open");
    assert_eq!(port.recorder.take(), Vec::<String>::new());

    click(&mut browser, "pause");
    click(&mut browser, "ask-yes");
    assert_eq!(asked(&port), ["pause next"]);
    browser.until("document.querySelector('#pause').textContent === 'Resume'");

    // The slider is logarithmic: half way is one per cent.
    browser.eval("const s = document.querySelector('#exposure'); s.value = 50; s.dispatchEvent(new Event('input'))");
    browser.until("document.querySelector('#percent').value === '1'");
    click(&mut browser, "apply");
    browser.until("document.querySelector('#ask-text').textContent.includes('from 50 % to 1 %')");
    click(&mut browser, "ask-yes");
    assert_eq!(asked(&port), ["exposure next 0.01"]);

    browser.eval("const p = document.querySelector('#percent'); p.value = '0.05'; p.dispatchEvent(new Event('input'))");
    click(&mut browser, "apply");
    click(&mut browser, "ask-yes");
    assert_eq!(asked(&port), ["exposure next 0.0005"]);
    assert_eq!(browser.complaints, Vec::<String>::new());
}

#[test]
fn a_token_is_asked_for_once_and_kept_for_the_session() {
    let Some(mut browser) = Chromium::start() else {
        return;
    };
    let port = Port::start(filled_registry(1, 2), Some("s3cret"));
    browser.open(&port.url(), 1280, false);
    browser.until("document.querySelector('#ask').open");
    browser.eval("document.querySelector('#ask-token').value = 's3cret'; document.querySelector('#ask-yes').click()");
    browser.until("document.querySelectorAll('#mirrors tr').length === 2");
    browser.eval("location.reload()");
    browser.until("document.querySelectorAll('#mirrors tr').length === 2");
    assert_eq!(browser.eval("document.querySelector('#ask').open"), false);
    // The report asks for it too, and a link alone cannot show it.
    browser.eval("document.querySelector('#report').click()");
    browser.until("document.title === 'Parhelion report'");
    browser.until("document.querySelectorAll('section').length === 2");
    // Before it had the token it was told so.
    browser
        .complaints
        .retain(|told| !told.contains("401 (Unauthorized)"));
    assert_eq!(browser.complaints, Vec::<String>::new());
}

#[test]
fn the_report_fits_every_screen() {
    let Some(mut browser) = Chromium::start() else {
        return;
    };
    let port = Port::start(filled_registry(2, 6), None);
    for at in [0, 60, 120, 180] {
        port.state
            .timeline
            .note(at, || port.state.registry.mirrors());
    }
    for (width, dark, name) in [(1280, false, "light"), (390, true, "phone-dark")] {
        browser.open(&format!("{}/report", port.url()), width, dark);
        browser.until("document.querySelectorAll('section').length === 6");
        fits(&mut browser, name);
        browser.screenshot(&format!("report-{name}"));
    }
    let inside = browser.eval(
        "[...document.querySelectorAll('svg path')].every(p => { const a = p.getBBox(), b = p.ownerSVGElement.viewBox.baseVal; \
         return a.x >= 0 && a.y >= 0 && a.x + a.width <= b.width + 1 && a.y + a.height <= b.height + 1; })",
    );
    assert_eq!(inside, true, "a line leaves its chart");
    assert_eq!(browser.complaints, Vec::<String>::new());
}
