//! Headless Chromium, driven over its debugging pipe (Chrome DevTools Protocol, messages ended by a zero byte).

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use parhelion::testing::wait::eventually;
use serde_json::{Value, json};

/// Longest wait for an answer of the browser, or for a page to become what is awaited.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page.
pub struct Chromium {
    process: Child,
    pipe: Option<ChildStdin>,
    messages: Receiver<Value>,
    session: Option<String>,
    sent: u64,
    /// What the page complained about: exceptions, console errors, violations of its policy.
    pub complaints: Vec<String>,
    _profile: tempfile::TempDir,
}

/// Where it is installed, if it is.
fn installed() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&paths)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|path| path.is_file())
}

impl Chromium {
    /// A browser with an empty page. `None`, said loudly, where there is no Chromium.
    pub fn start() -> Option<Chromium> {
        let Some(binary) = installed() else {
            eprintln!(
                "\n*** SKIPPED: there is no Chromium here (apt-get install chromium); the dashboard was NOT tested ***\n"
            );
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        // The pipe is descriptors 3 and 4; the shell makes them of its own input and output.
        let mut process = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null", "sh"])
            .arg(binary)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu"])
            .args(["--hide-scrollbars", "--disable-dev-shm-usage"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(["--remote-debugging-pipe", "about:blank"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pipe = process.stdin.take();
        let mut output = process.stdout.take().unwrap();
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            let (mut waiting, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                waiting.extend_from_slice(&buffer[..n]);
                while let Some(end) = waiting.iter().position(|byte| *byte == 0) {
                    let line: Vec<u8> = waiting.drain(..=end).collect();
                    let message = serde_json::from_slice(&line[..end]).unwrap();
                    if sender.send(message).is_err() {
                        return;
                    }
                }
            }
        });
        let mut browser = Chromium {
            process,
            pipe,
            messages,
            session: None,
            sent: 0,
            complaints: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// One command and its result.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut message = json!({"id": self.sent, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.pipe.as_mut().unwrap().write_all(&bytes).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self
                .messages
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("{method}: no answer within {PATIENCE:?}"));
            if message["id"] == self.sent {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            self.hear(&message);
        }
    }

    fn hear(&mut self, message: &Value) {
        let params = &message["params"];
        match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => {
                self.complaints.push(params["exceptionDetails"].to_string());
            }
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                self.complaints.push(params["entry"].to_string());
            }
            Some("Runtime.consoleAPICalled") if params["type"] == "error" => {
                self.complaints.push(params["args"].to_string());
            }
            _ => {}
        }
    }

    /// Opens a page in a window of this width, light or dark.
    pub fn open(&mut self, url: &str, width: u32, dark: bool) {
        self.look(width, dark);
        self.call("Page.navigate", json!({"url": url}));
    }

    /// Changes width and theme under the page.
    pub fn look(&mut self, width: u32, dark: bool) {
        let window =
            json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", window);
        let theme =
            json!({"name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" }});
        self.call("Emulation.setEmulatedMedia", json!({"features": [theme]}));
    }

    /// The value of an expression in the page.
    pub fn eval(&mut self, expression: &str) -> Value {
        let answer = self.evaluate(expression);
        assert!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        answer["result"]["value"].clone()
    }

    fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        self.call("Runtime.evaluate", params)
    }

    /// Waits until the expression is true; a page that is not there yet is not.
    pub fn until(&mut self, expression: &str) {
        let is_true =
            |page: &mut Self| page.evaluate(expression)["result"]["value"] == Value::Bool(true);
        let came = eventually(PATIENCE, || is_true(self).then_some(()));
        assert!(
            came.is_some(),
            "never true: {expression}\n{}",
            self.eval("document.body.innerText")
        );
    }

    /// A PNG of the whole page, if the variable PARHELION_SCREENSHOTS names a folder for it.
    pub fn screenshot(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("PARHELION_SCREENSHOTS") else {
            return;
        };
        let size = self.call("Page.getLayoutMetrics", json!({}))["cssContentSize"].clone();
        let clip =
            json!({"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1});
        let params = json!({"captureBeyondViewport": true, "clip": clip});
        let image = self.call("Page.captureScreenshot", params);
        let path = PathBuf::from(folder).join(format!("{name}.png"));
        let bytes = base64(image["data"].as_str().unwrap_or_default());
        std::fs::write(path, bytes).unwrap();
    }
}

fn base64(text: &str) -> Vec<u8> {
    use ::base64::Engine as _;
    ::base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap()
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // It ends with its pipe; the kill is for one that hangs.
        drop(self.pipe.take());
        let ended = || matches!(self.process.try_wait(), Ok(Some(_)) | Err(_)).then_some(());
        if eventually(Duration::from_secs(5), ended).is_none() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}
