//! A connection as slow as a real one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes moved at once when paced; small, so that the flow is even.
const STEP_BYTES: usize = 16 << 10;

/// A stream that moves at most `bytes_per_second` each way.
pub(super) struct Paced {
    stream: TcpStream,
    bytes_per_second: Option<u64>,
    reads: Pin<Box<Sleep>>,
    writes: Pin<Box<Sleep>>,
}

impl Paced {
    pub(super) fn new(stream: TcpStream, bytes_per_second: Option<u64>) -> Self {
        let now = || Box::pin(sleep_until(Instant::now()));
        Self { stream, bytes_per_second, reads: now(), writes: now() }
    }
}

/// Waits until `bytes` moved now are paid for.
fn charge(pause: &mut Pin<Box<Sleep>>, bytes: usize, bytes_per_second: u64) {
    let cost = Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
    let until = pause.deadline().max(Instant::now()) + cost;
    pause.as_mut().reset(until);
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(bytes_per_second) = self.bytes_per_second else {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        };
        ready!(self.reads.as_mut().poll(cx));
        let mut step = vec![0; STEP_BYTES.min(buf.remaining())];
        let mut step = ReadBuf::new(&mut step);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut step))?;
        buf.put_slice(step.filled());
        charge(&mut self.reads, step.filled().len(), bytes_per_second);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Some(bytes_per_second) = self.bytes_per_second else {
            return Pin::new(&mut self.stream).poll_write(cx, buf);
        };
        ready!(self.writes.as_mut().poll(cx));
        let step = buf.get(..STEP_BYTES).unwrap_or(buf);
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, step))?;
        charge(&mut self.writes, written, bytes_per_second);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.bytes_per_second {
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, bufs),
            Some(_) => {
                let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
                self.poll_write(cx, first)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
