//! Connections of the test server: HTTP around the S3 service, and the faults that S3 knows nothing of.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};

use super::faults::{Action, Faults, Request};
use super::paced::Paced;
use super::service::Service;
use super::{ACCESS_KEY, Link, Objects, SECRET_KEY};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Serves connections until the runtime goes down.
pub(super) async fn accept(listener: TcpListener, link: Link, objects: Arc<Objects>, faults: Arc<Faults>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("the listener is asynchronous");
    let mut service = S3ServiceBuilder::new(Service { objects });
    service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    let service = service.build();
    while let Ok((stream, _)) = listener.accept().await {
        // Without it every small answer on a kept connection takes 40 ms.
        let _ = stream.set_nodelay(true);
        let io = TokioIo::new(Paced::new(stream, link.bytes_per_second));
        let (service, faults) = (service.clone(), Arc::clone(&faults));
        tokio::spawn(async move {
            let answer =
                service_fn(move |request| answer(request, service.clone(), Arc::clone(&faults), link));
            // Clients that go away are no concern of the server's.
            let _ = http1::Builder::new().timer(TokioTimer::new()).serve_connection(io, answer).await;
        });
    }
}

async fn answer(
    request: hyper::Request<Incoming>,
    service: S3Service,
    faults: Arc<Faults>,
    link: Link,
) -> Result<Response<Body>, BoxError> {
    let action = faults.arrive(describe(&request));
    match action {
        Some(Action::CutBefore) => return Err("told to cut the connection".into()),
        Some(Action::Respond { status, code }) => return refuse(request, status, code).await,
        Some(Action::Delay(delay)) => tokio::time::sleep(delay).await,
        Some(Action::LoseResponse | Action::CutBody) | None => {}
    }
    let head = request.method() == hyper::Method::HEAD;
    let response = service.call(request.map(Into::into)).await.map_err(BoxError::from)?;
    match action {
        Some(Action::LoseResponse) => return Err("told to lose the response".into()),
        Some(Action::CutBody) if !head => return cut(response).await,
        _ => {}
    }
    tokio::time::sleep(link.latency).await;
    Ok(response.map(|body| body.map_err(|error| -> BoxError { error }).boxed_unsync()))
}

fn describe(request: &hyper::Request<Incoming>) -> Request {
    let path = request.uri().path().trim_start_matches('/');
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    let length = request.headers().get(hyper::header::CONTENT_LENGTH);
    Request {
        method: request.method().to_string(),
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        body_bytes: length.and_then(|len| len.to_str().ok()?.parse().ok()).unwrap_or(0),
    }
}

async fn refuse(
    request: hyper::Request<Incoming>,
    status: u16,
    code: &str,
) -> Result<Response<Body>, BoxError> {
    let is_head = request.method() == hyper::Method::HEAD;
    // Read to its end, or the client may see a reset instead of the answer.
    request.into_body().collect().await?;
    let xml = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as told</Message></Error>");
    let body = if is_head { Bytes::new() } else { Bytes::from(xml) };
    let response = Response::builder().status(StatusCode::from_u16(status)?);
    let response = response.header("content-type", "application/xml");
    Ok(response.body(Full::new(body).map_err(|never| match never {}).boxed_unsync())?)
}

/// The head as it was, half of the body, and an end that the client must notice.
async fn cut(response: Response<s3s::Body>) -> Result<Response<Body>, BoxError> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| -> BoxError { error })?.to_bytes();
    let half = Frame::data(body.slice(..body.len() / 2));
    let broken = stream::iter([
        Ok(half),
        Err(BoxError::from(io::Error::new(io::ErrorKind::ConnectionReset, "told to cut the body"))),
    ]);
    Ok(Response::from_parts(head, StreamBody::new(broken).boxed_unsync()))
}
