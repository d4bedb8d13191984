//! Asks the control port, with the token if there is one.

use std::time::Duration;

use serde_json::Value;
use ureq::Agent;

use super::CtlError;
use crate::limits::CTL_ANSWER_BYTES_MAX;

/// A reload or drain waits for the cores; longer than `drain_timeout` should be.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// How `ctl` names itself, so that the log tells it from other HTTP clients.
pub(in crate::control) const CTL_AGENT: &str = concat!("parhelion-ctl/", env!("CARGO_PKG_VERSION"));

pub(super) struct Client {
    agent: Agent,
    base: String,
    token: Option<String>,
}

impl Client {
    pub(super) fn new(url: &str, token: Option<String>) -> Self {
        let config = Agent::config_builder()
            .timeout_global(Some(REQUEST_TIMEOUT))
            // The API says in the body why it refuses.
            .http_status_as_error(false)
            // A proxy of the environment would see the token, and the API refuses its Host.
            .proxy(None)
            .user_agent(CTL_AGENT)
            .build();
        let base = url.trim_end_matches('/');
        let scheme = if base.contains("://") { "" } else { "http://" };
        Self {
            agent: config.into(),
            base: format!("{scheme}{base}"),
            token,
        }
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, CtlError> {
        let url = format!("{}{path}", self.base);
        let mut request = self.agent.get(&url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        answer(&url, request.call())
    }

    pub(super) fn post(&self, path: &str, body: Value) -> Result<Value, CtlError> {
        let url = format!("{}{path}", self.base);
        let mut request = self.agent.post(&url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        answer(&url, request.send_json(body))
    }
}

fn answer(
    url: &str,
    result: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<Value, CtlError> {
    let mut response = result.map_err(|source| CtlError::Unreachable {
        url: url.to_owned(),
        source: Box::new(source),
    })?;
    let status = response.status().as_u16();
    let body = response
        .body_mut()
        .with_config()
        .limit(CTL_ANSWER_BYTES_MAX);
    let value: Value = body.read_json().map_err(|_| CtlError::NotOurs {
        url: url.to_owned(),
    })?;
    if status == 200 {
        return Ok(value);
    }
    let text = |key: &str| value["error"][key].as_str().unwrap_or("?").to_owned();
    Err(CtlError::Refused {
        status,
        code: text("code"),
        message: text("message"),
    })
}

/// Everything but letters, digits and `-._~` as %XX (RFC 3986, section 2).
pub(super) fn percent(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_path_segment() {
        assert_eq!(percent("a:b/../c?d"), "a%3Ab%2F..%2Fc%3Fd");
    }
}
