//! One request to S3: bounded in number, tried again where that is safe, and what its failure means.
//!
//! The SDK's own retries are off: it cannot know that a refused condition may be the echo of a write of ours whose reply was
//! lost. An error tells the store's error code at most, never a response body.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use tokio::sync::Semaphore;

use crate::store::{Location, Object, StoreError};

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    Missing,
    MissingBucket,
    MissingUpload,
    /// The condition of the request does not hold.
    Refused,
    /// Another write to the same key is under way.
    Busy,
    Denied(String),
    Archived,
    /// The server does not know this request.
    Unsupported,
    /// Lost, late or cut short, or an answer of a server in trouble: the request may have been carried out or not.
    Transient(String),
    /// The server is well and asks to come again later; the request was not carried out.
    Throttled(String),
    Other(String),
}

impl Fault {
    pub(super) fn transient(reason: impl Into<String>) -> Fault {
        Fault::Transient(reason.into())
    }

    /// What it means for a read of `object`.
    pub(super) fn error_on(self, object: &Object) -> StoreError {
        match (self.error(&object.location), &object.storage_class) {
            (StoreError::Archived { location, .. }, Some(class)) => {
                StoreError::Archived { location, class: class.clone() }
            }
            (other, _) => other,
        }
    }

    /// What it means for a request on `location`.
    pub(super) fn error(self, location: &Location) -> StoreError {
        let location = location.clone();
        match self {
            Fault::Missing => StoreError::NotFound(location),
            Fault::MissingBucket => StoreError::NotFound(bucket_of(location)),
            Fault::Refused | Fault::Busy => StoreError::Changed(location),
            Fault::Denied(reason) => StoreError::Denied { location, reason },
            Fault::Archived => StoreError::Archived { location, class: "(not told)".to_owned() },
            Fault::Transient(reason) | Fault::Throttled(reason) => StoreError::Unavailable { location, reason },
            Fault::MissingUpload => {
                StoreError::Other { location, reason: "its upload is gone; was it aborted by another?".to_owned() }
            }
            Fault::Unsupported => {
                StoreError::Other { location, reason: "the store does not know this request".to_owned() }
            }
            Fault::Other(reason) => StoreError::Other { location, reason },
        }
    }
}

fn bucket_of(location: Location) -> Location {
    match location {
        Location::S3 { bucket, .. } => Location::S3 { bucket, key: String::new() },
        local @ Location::Local(_) => local,
    }
}

/// What the SDK's error means.
pub(super) fn fault<E: ProvideErrorMetadata + std::error::Error + 'static>(error: SdkError<E, HttpResponse>) -> Fault {
    match &error {
        SdkError::TimeoutError(_) => Fault::transient("timed out"),
        SdkError::DispatchFailure(_) | SdkError::ConstructionFailure(_) if is_credentials(&error) => {
            Fault::Denied("no usable credentials".to_owned())
        }
        SdkError::ConstructionFailure(_) => Fault::Other("the request cannot be built".to_owned()),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => Fault::transient("timed out"),
        SdkError::DispatchFailure(failure) if failure.is_user() => {
            Fault::Other("the request cannot be sent".to_owned())
        }
        SdkError::DispatchFailure(_) => Fault::transient("the connection failed"),
        SdkError::ResponseError(_) => Fault::transient("the reply was cut short or is not S3's"),
        SdkError::ServiceError(answer) => by_answer(answer.raw().status().as_u16(), answer.err().code()),
        _ => Fault::Other("the request failed".to_owned()),
    }
}

/// A provider of credentials that fails in the middle of a run, at a renewal.
fn is_credentials(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<CredentialsError>())
}

fn by_answer(status: u16, code: Option<&str>) -> Fault {
    let code = code.filter(|code| code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    // A HEAD has no body and so no code of the server's: the SDK then makes one up of the status.
    let told = code.map_or_else(|| format!("status {status}"), str::to_owned);
    match code.unwrap_or("") {
        "NoSuchBucket" => Fault::MissingBucket,
        "NoSuchUpload" => Fault::MissingUpload,
        "NoSuchKey" | "NoSuchVersion" => Fault::Missing,
        "PreconditionFailed" => Fault::Refused,
        "ConditionalRequestConflict" | "OperationAborted" => Fault::Busy,
        "InvalidObjectState" => Fault::Archived,
        "AccessDenied"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "AllAccessDisabled"
        | "AccountProblem" => Fault::Denied(told),
        "RequestTimeTooSkewed" => Fault::Denied(format!("{told}: the clock of this machine is wrong")),
        "SlowDown" | "Throttling" | "ThrottlingException" => Fault::Throttled(told),
        "InternalError" | "ServiceUnavailable" | "RequestTimeout" => Fault::Transient(told),
        "NotImplemented" | "MethodNotAllowed" => Fault::Unsupported,
        "PermanentRedirect"
        | "TemporaryRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => another_region(&told),
        _ => by_status(status, told),
    }
}

fn by_status(status: u16, told: String) -> Fault {
    match status {
        401 | 403 => Fault::Denied(told),
        404 => Fault::Missing,
        405 | 501 => Fault::Unsupported,
        409 => Fault::Busy,
        // The object is shorter than it was.
        412 | 416 => Fault::Refused,
        429 => Fault::Throttled(told),
        500 | 502..=504 | 509 => Fault::Transient(told),
        301 | 307 | 308 => another_region(&told),
        _ => Fault::Other(format!("the store answers {told}")),
    }
}

fn another_region(told: &str) -> Fault {
    Fault::Other(format!("the bucket is in another region than the job or the environment says ({told})"))
}

/// How often a request is sent at most.
const ATTEMPTS: u32 = 7;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The way to the store: how many requests are under way, and whether it answered at all lately.
#[derive(Debug)]
pub(super) struct Line {
    permits: Semaphore,
    /// The last request ended without an answer: the next ones are sent once only, so that a store that went away is told soon
    /// and not after the patience of every object in turn.
    is_down: AtomicBool,
    first_pause: Duration,
}

impl Line {
    pub(super) fn new(requests_in_flight: usize) -> Line {
        Line {
            permits: Semaphore::new(requests_in_flight.max(1)),
            is_down: AtomicBool::new(false),
            first_pause: FIRST_PAUSE,
        }
    }

    /// Sends until there is an answer that sending again would not change.
    pub(super) async fn call<T, F: Future<Output = Result<T, Fault>>>(
        &self,
        mut send: impl FnMut() -> F,
    ) -> Result<T, Fault> {
        let attempts = if self.is_down.load(Ordering::Relaxed) { 1 } else { ATTEMPTS };
        let mut sent = 0;
        loop {
            let outcome = {
                let _permit = self.permits.acquire().await.map_err(|_| Fault::transient("the store is closed"))?;
                send().await
            };
            sent += 1;
            match outcome {
                Err(Fault::Transient(reason)) if sent < attempts => self.pause(sent, &reason).await,
                // It answers, so that the patience of a store that went away is not asked of it.
                Err(Fault::Throttled(reason)) if sent < ATTEMPTS => self.pause(sent, &reason).await,
                Err(Fault::Busy) if sent < attempts => self.pause(sent, "another write is under way").await,
                outcome => {
                    self.is_down.store(matches!(outcome, Err(Fault::Transient(_))), Ordering::Relaxed);
                    return outcome;
                }
            }
        }
    }

    async fn pause(&self, sent: u32, reason: &str) {
        let full = (self.first_pause * 2u32.pow(sent - 1)).min(LONGEST_PAUSE);
        // Between half and all of it, so that many that were turned away together do not come again together.
        let mut random = [0u8; 1];
        let share = getrandom::fill(&mut random).map_or(1.0, |()| f64::from(random[0]) / 255.0);
        tracing::debug!(sent, reason, "request is sent again");
        tokio::time::sleep(full.mul_f64(0.5 + share / 2.0)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_by_its_code_only() {
        let location = Location::S3 { bucket: "lake".into(), key: "a.csv".into() };
        let text = |status, code| by_answer(status, code).error(&location).to_string();
        for (status, code, wanted) in [
            (404, Some("NoSuchKey"), "s3://lake/a.csv does not exist"),
            (404, Some("NoSuchBucket"), "s3://lake/ does not exist"),
            (412, None, "s3://lake/a.csv changed since it was listed"),
            (409, Some("ConditionalRequestConflict"), "s3://lake/a.csv changed since it was listed"),
            (403, Some("InvalidAccessKeyId"), "access to s3://lake/a.csv is denied: InvalidAccessKeyId"),
            (403, None, "access to s3://lake/a.csv is denied: status 403"),
            (403, Some("InvalidObjectState"), "s3://lake/a.csv is archived in storage class (not told)"),
            (503, Some("SlowDown"), "s3://lake/a.csv cannot be reached: SlowDown"),
            (502, None, "s3://lake/a.csv cannot be reached: status 502"),
            (400, Some("<b>ann@example.org</b>"), "s3://lake/a.csv: the store answers status 400"),
        ] {
            assert_eq!(text(status, code), wanted);
        }
    }

    #[tokio::test]
    async fn a_store_that_went_away_is_asked_once_until_it_answers() {
        let line = Line { first_pause: Duration::from_micros(100), ..Line::new(1) };
        let (silence, busy) = (Err(Fault::transient("timed out")), Err(Fault::Throttled("SlowDown".into())));
        let outcomes = [
            (&silence, ATTEMPTS),
            (&silence, 1),
            (&Ok(()), 1),
            (&silence, ATTEMPTS),
            (&busy, ATTEMPTS),
            (&busy, ATTEMPTS),
            (&silence, ATTEMPTS),
        ];
        for (answer, wanted) in outcomes {
            let mut sent = 0;
            let outcome = line.call(|| {
                sent += 1;
                async { answer.clone() }
            });
            assert_eq!(outcome.await, *answer);
            assert_eq!(sent, wanted);
        }
    }
}
