//! What the test server was asked, and what it was told to get wrong.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A request as it arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    pub method: String,
    pub bucket: String,
    /// Empty for requests to the bucket itself (listing, batch delete).
    pub key: String,
    pub query: String,
    /// Length of its body.
    pub body_bytes: u64,
}

impl Request {
    /// What it is billed as: put (also copies and all of multipart), get, head, list or delete.
    pub fn kind(&self) -> &'static str {
        match self.method.as_str() {
            "GET" if self.key.is_empty() => "list",
            "GET" => "get",
            "HEAD" => "head",
            "POST" if self.key.is_empty() => "delete",
            "DELETE" if !self.query.contains("uploadId=") => "delete",
            _ => "put",
        }
    }
}

/// What to do instead of answering properly.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Answers this status and S3 error code; nothing is applied.
    Respond { status: u16, code: &'static str },
    /// Waits before it does anything.
    Delay(Duration),
    /// Closes the connection; nothing is applied.
    CutBefore,
    /// Applies the request and closes the connection without an answer.
    LoseResponse,
    /// Sends the head and half of the body of the answer, then closes the connection.
    CutBody,
}

/// Which requests fail, and how. Start from [`Fault::on`].
#[derive(Clone, Debug)]
pub struct Fault {
    /// As in [`Request::kind`]; None is any.
    kind: Option<&'static str>,
    key_contains: String,
    /// Matching requests that pass before the first one fails.
    skip: u32,
    /// Requests that fail after those.
    times: u32,
    action: Action,
}

impl Fault {
    /// Every request of `kind` (see [`Request::kind`]).
    pub fn on(kind: &'static str, action: Action) -> Self {
        Self { kind: Some(kind), key_contains: String::new(), skip: 0, times: u32::MAX, action }
    }

    /// Every request.
    pub fn on_any(action: Action) -> Self {
        Self { kind: None, ..Self::on("", action) }
    }

    /// Only those whose key contains `part`.
    pub fn key(self, part: &str) -> Self {
        Self { key_contains: part.to_owned(), ..self }
    }

    /// Only from the one behind the first `skip`.
    pub fn after(self, skip: u32) -> Self {
        Self { skip, ..self }
    }

    /// Only so many.
    pub fn times(self, times: u32) -> Self {
        Self { times, ..self }
    }

    fn matches(&self, request: &Request) -> bool {
        self.kind.is_none_or(|kind| kind == request.kind()) && request.key.contains(&self.key_contains)
    }
}

/// The faults in force and the requests seen.
#[derive(Default)]
pub struct Faults {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    faults: Vec<Fault>,
    requests: Vec<Request>,
}

impl Faults {
    /// From now on, `fault` happens. Of several that match a request the first added does.
    pub fn add(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// From now on, all is well.
    pub fn clear(&self) {
        self.state().faults.clear();
    }

    /// Notes a request and decides its fate.
    pub(super) fn arrive(&self, request: Request) -> Option<Action> {
        let mut state = self.state();
        let fault = state.faults.iter_mut().find(|fault| 0 < fault.times && fault.matches(&request));
        let action = fault.and_then(|fault| {
            if 0 < fault.skip {
                fault.skip -= 1;
                return None;
            }
            fault.times -= 1;
            Some(fault.action.clone())
        });
        state.requests.push(request);
        action
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
