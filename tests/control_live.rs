//! The dashboard over a real proxy with real servers: what an operator does on the page happens, and is written down.
//!
//! `PARHELION_SCREENSHOTS=/tmp cargo test --test control_live` leaves pictures to look at.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod control_support;
mod support;

use std::net::SocketAddr;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use control_support::chromium::Chromium;
use parhelion::testing::proxy::{ProxyOptions, http_get};
use parhelion::testing::wait::eventually;
use serde_json::Value;
use support::faults::{self, Load, PATIENCE};
use support::resp::RespClient;

/// A third of what is asked of `strange` is answered otherwise.
fn traffic(address: SocketAddr, rounds: usize) {
    let mut client = RespClient::connect(address);
    for round in 0..rounds {
        let key = format!("user:{}", round % 50);
        client.call(&["SET", &key, &"x".repeat(100)]);
        client.call(&["GET", &key]);
        client.call(&["HGETALL", "settings"]);
        client.call(&["INCR", "visits"]);
        client.call(&["GET", "greeting"]);
    }
}

fn mirror(control: SocketAddr, name: &str) -> Value {
    let answer: Value = serde_json::from_str(&http_get(control, "/api/mirrors").unwrap()).unwrap();
    let list = answer["mirrors"].as_array().unwrap();
    list.iter().find(|m| m["name"] == name).unwrap().clone()
}

fn click(browser: &mut Chromium, id: &str) {
    browser.until(&format!("!document.querySelector('#{id}').disabled"));
    browser.eval(&format!("document.querySelector('#{id}').click()"));
}

/// Selects a mirror by its row, as an operator does.
fn pick(browser: &mut Chromium, name: &str) {
    browser.eval(&format!(
        "[...document.querySelectorAll('#mirrors tr')].find(row => row.textContent.includes('{name}')).click()"
    ));
    browser.until(&format!(
        "document.querySelector('#d-name').textContent === '{name}'"
    ));
}

#[test]
fn a_real_proxy_is_steered_from_the_page() {
    let Some(mut browser) = Chromium::start() else {
        return;
    };
    let [primary, same, strange, stopped] = [(); 4].map(|()| faults::redis());
    // Written past the proxy: what the candidates differ in.
    for (server, word) in [
        (&primary, "hello"),
        (&same, "hello"),
        (&strange, "bonjour"),
        (&stopped, "hello"),
    ] {
        server.command(&["SET", "greeting", word]).unwrap();
        server
            .command(&["HSET", "settings", "colour", "blue", "greeting", word])
            .unwrap();
    }
    let options = ProxyOptions::new("redis", primary.address())
        .mirror(same.address())
        .mirror(strange.address())
        .mirror(stopped.address())
        .general("mirror_queue = 16")
        .general("mirror_timeout = \"3s\"");
    let proxy = faults::start(&options);
    let (address, control) = (proxy.address(), proxy.control());
    browser.open(&format!("http://{control}"), 1280, false);
    traffic(address, 200);
    stopped.pause().unwrap();
    std::thread::scope(|scope| {
        let (stop, stopped_by) = channel::<()>();
        scope.spawn(move || {
            let pause = Duration::from_millis(20);
            while stopped_by.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                traffic(address, 20);
            }
        });
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            browser.until("document.querySelectorAll('#mirrors tr').length === 3");
            pick(&mut browser, "mirror1");
            browser.until("document.querySelectorAll('#examples .example').length >= 1");
            browser.until("document.querySelector('#examples').textContent.includes('bonjour')");
            browser.until("[...document.querySelectorAll('#latency path.line')].every(p => p.getAttribute('d').length > 60)");
            browser.screenshot("live-strange-light");
            browser.look(390, true);
            browser.screenshot("live-strange-phone-dark");
            browser.look(1280, true);
            pick(&mut browser, "mirror2");
            browser.until(
                "document.querySelector('#flow').textContent.includes('dropped: queue full')",
            );
            browser.screenshot("live-stopped-dark");
            browser.look(1280, false);

            pick(&mut browser, "mirror0");
            browser.eval("const s = document.querySelector('#exposure'); s.value = 50; s.dispatchEvent(new Event('input'))");
            click(&mut browser, "apply");
            browser.until(
                "document.querySelector('#ask-text').textContent.includes('from 100 % to 1 %')",
            );
            assert_eq!(
                mirror(control, "mirror0")["exposure"],
                1.0,
                "not before it is confirmed"
            );
            browser.screenshot("live-asks");
            click(&mut browser, "ask-yes");
            let is = |key: &str, value: Value| {
                let came = eventually(PATIENCE, || {
                    (mirror(control, "mirror0")[key] == value).then_some(())
                });
                assert!(came.is_some(), "{key} never became {value}");
            };
            is("exposure", 0.01.into());
            click(&mut browser, "pause");
            click(&mut browser, "ask-yes");
            is("paused", true.into());
            browser.until("document.querySelector('#pause').textContent === 'Resume'");
            let paused = mirror(control, "mirror0")["ledger"]["delivered"].clone();
            traffic(address, 50);
            assert_eq!(mirror(control, "mirror0")["ledger"]["delivered"], paused);
            click(&mut browser, "pause");
            click(&mut browser, "ask-yes");
            is("paused", false.into());
            // Its own change stands on the page of whoever comes later.
            browser.until(
                "document.querySelector('#changes').textContent.includes('set exposure mirror0')",
            );
            browser.until("document.querySelectorAll('#changes .change').length === 3");
            browser.screenshot("live-after-light");
            browser.look(390, false);
            let wide = browser.eval("document.documentElement.scrollWidth - innerWidth");
            assert_eq!(wide, 0, "wider than a phone");
            browser.screenshot("live-after-phone");
            browser.open(&format!("http://{control}/report"), 1280, false);
            browser.until("document.querySelectorAll('section').length >= 3");
            browser.screenshot("live-report-light");
            browser.look(390, true);
            browser.screenshot("live-report-phone-dark");
        }));
        drop(stop);
        if let Err(failure) = seen {
            std::panic::resume_unwind(failure);
        }
    });
    stopped.resume().unwrap();
    // Who did what is in the log and on the page of changes.
    let changes: Value = serde_json::from_str(&http_get(control, "/api/changes").unwrap()).unwrap();
    let told: Vec<&str> = changes["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| change["operation"].as_str().unwrap())
        .collect();
    assert_eq!(told, ["resume", "pause", "set_exposure"]);
    let log = proxy.log().join("\n");
    for what in ["set_exposure", "pause", "resume"] {
        let is_told = |line: &str| {
            line.contains("by=http 127.0.0.1:")
                && line.contains(&format!("what=\"{what}\""))
                && line.contains("mirror0")
        };
        assert!(log.lines().any(is_told), "{what}: {log}");
    }
    assert_eq!(browser.complaints, Vec::<String>::new());
}

/// The kernel's share of the work is most of it, and is done inside the call that waits.
#[test]
fn a_core_tells_all_the_time_that_it_works() {
    let [primary, same] = [(); 2].map(|()| faults::redis());
    let options = ProxyOptions::new("redis", primary.address()).mirror(same.address());
    let proxy = faults::start(&options);
    let control = proxy.control();
    let reading = || {
        let status = faults::status(control);
        let core = &status["cores"][0];
        let seconds = |key: &str| core[key].as_u64().unwrap() as f64 / 1e9;
        let used = status["process"]["cpu_seconds"].as_f64().unwrap();
        [seconds("busy_ns"), seconds("idle_ns"), used]
    };
    let load = Load::start(proxy.address(), 4, 100);
    load.progress(200);
    let before = reading();
    let after = eventually(PATIENCE, || {
        let now = reading();
        (now[2] - before[2] > 1.5).then_some(now)
    });
    let [busy, idle, used] = [0, 1, 2].map(|at| after.unwrap()[at] - before[at]);
    load.finish();
    // The rest is the control thread's, and a core tells every tenth of a second.
    assert!(
        busy > 0.7 * used && busy < used + 0.2,
        "busy {busy} s of {used} s, idle {idle} s"
    );
    assert!(idle >= 0.0, "{idle}");
}
