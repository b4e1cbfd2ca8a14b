//! Repeats calls that failed for the moment, with exponential backoff and full jitter.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::base::range::ByteRange;
use crate::base::time::{Clock, Random};
use crate::store::object::{
    Etag, Fencing, ImmutableObjectStore, ListPage, MutableObjectStore, ObjectKey, ObjectMeta,
};
use crate::store::{Error, Kind, Result};

/// When to try again and when to give up.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// The wait before the n-th repetition is drawn evenly from zero to `base * 2^(n-1)`, at most `wait_max`.
    /// Drawn from zero because clients that failed together must not come back together.
    pub base: Duration,
    pub wait_max: Duration,
    /// No repetition starts later than this after the call began.
    pub give_up_after: Duration,
}

/// Repeats calls that answered `Unavailable` or `Throttled`.
///
/// A conditional write whose answer was lost may have been applied, and its repetition then fails its own condition.
/// So where an attempt with unknown outcome is followed by `Precondition`, the stored object is compared with the body:
/// identical bytes are this call's success. Writers whose bodies name them are thus told apart.
pub struct Retry {
    inner: Arc<dyn MutableObjectStore>,
    policy: RetryPolicy,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
}

/// One call's attempts so far.
struct Attempts<'a> {
    retry: &'a Retry,
    began: Duration,
    failed: u32,
}

impl Retry {
    #[must_use]
    pub fn new(
        inner: Arc<dyn MutableObjectStore>,
        policy: RetryPolicy,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Self {
        Self { inner, policy, clock, random }
    }

    fn attempts(&self) -> Attempts<'_> {
        Attempts { retry: self, began: self.clock.monotonic(), failed: 0 }
    }

    /// What became of a conditional write of `body` after `refusal`, when an earlier attempt may have been applied.
    async fn own_or(&self, key: &ObjectKey, body: &Bytes, refusal: Error) -> Result<ObjectMeta> {
        let mut attempts = self.attempts();
        loop {
            match self.stored_if_equal(key, body).await {
                Ok(Some(meta)) => return Ok(meta),
                Ok(None) => return Err(refusal),
                Err(error) => attempts.pause_after(error).await?,
            }
        }
    }

    async fn stored_if_equal(&self, key: &ObjectKey, body: &Bytes) -> Result<Option<ObjectMeta>> {
        let stored = async {
            let meta = self.inner.head(key).await?;
            if meta.len != body.len() as u64 {
                return Ok(None);
            }
            let stored = self.inner.get(key, None).await?;
            Ok((stored == *body).then_some(meta))
        };
        match stored.await {
            Err(Error { kind: Kind::NotFound, .. }) => Ok(None),
            other => other,
        }
    }
}

impl Attempts<'_> {
    /// Waits before the next attempt.
    ///
    /// # Errors
    /// `error` itself if it will not pass, or if time is up.
    async fn pause_after(&mut self, error: Error) -> Result<()> {
        let Retry { policy, clock, random, .. } = self.retry;
        if !error.is_transient() {
            return Err(error);
        }
        let ceiling = policy.base.saturating_mul(1 << self.failed.min(20)).min(policy.wait_max);
        let wait = ceiling.mul_f64(random.next_u64() as f64 / u64::MAX as f64);
        self.failed += 1;
        let elapsed = clock.monotonic().saturating_sub(self.began);
        if policy.give_up_after < elapsed + wait {
            let detail = format!(
                "{} (gave up after attempts={} in {:.1} s)",
                error.detail,
                self.failed,
                elapsed.as_secs_f64()
            );
            return Err(Error { detail, ..error });
        }
        clock.sleep(wait).await;
        Ok(())
    }
}

#[async_trait]
impl ImmutableObjectStore for Retry {
    async fn put_new(&self, key: &ObjectKey, body: Bytes) -> Result<ObjectMeta> {
        let mut attempts = self.attempts();
        loop {
            match self.inner.put_new(key, body.clone()).await {
                Err(error) if error.kind == Kind::Precondition && 0 < attempts.failed => {
                    return self.own_or(key, &body, error).await;
                }
                Err(error) => attempts.pause_after(error).await?,
                done => return done,
            }
        }
    }

    async fn get(&self, key: &ObjectKey, range: Option<ByteRange>) -> Result<Bytes> {
        let mut attempts = self.attempts();
        loop {
            match self.inner.get(key, range).await {
                Err(error) => attempts.pause_after(error).await?,
                done => return done,
            }
        }
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        let mut attempts = self.attempts();
        loop {
            match self.inner.head(key).await {
                Err(error) => attempts.pause_after(error).await?,
                done => return done,
            }
        }
    }

    async fn list(&self, prefix: &str, start_after: Option<&ObjectKey>) -> Result<ListPage> {
        let mut attempts = self.attempts();
        loop {
            match self.inner.list(prefix, start_after).await {
                Err(error) => attempts.pause_after(error).await?,
                done => return done,
            }
        }
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        let mut attempts = self.attempts();
        loop {
            match self.inner.delete(keys).await {
                Err(error) => attempts.pause_after(error).await?,
                done => return done,
            }
        }
    }

    fn fencing(&self) -> Fencing {
        self.inner.fencing()
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

#[async_trait]
impl MutableObjectStore for Retry {
    async fn put_if(&self, key: &ObjectKey, body: Bytes, expected: &Etag) -> Result<ObjectMeta> {
        let mut attempts = self.attempts();
        loop {
            match self.inner.put_if(key, body.clone(), expected).await {
                Err(error) if error.kind == Kind::Precondition && 0 < attempts.failed => {
                    return self.own_or(key, &body, error).await;
                }
                Err(error) => attempts.pause_after(error).await?,
                done => return done,
            }
        }
    }

    async fn copy(&self, from: &ObjectKey, to: &ObjectKey) -> Result<ObjectMeta> {
        let mut attempts = self.attempts();
        loop {
            match self.inner.copy(from, to).await {
                Err(error) => attempts.pause_after(error).await?,
                done => return done,
            }
        }
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
