//! Waiting for conditions.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// Long enough for a slow and busy machine: what takes so long never happens.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Looks until the condition gives its value; panics with its last complaint when it never does.
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> Result<T, String>) -> T {
    until_within(PATIENCE, what, look).await
}

/// The same for what takes long by its nature.
pub async fn until_within<T>(patience: Duration, what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(state) if began.elapsed() > patience => panic!("never came true: {what}; the last state: {state}"),
            Err(_) => sleep(LOOK).await,
        }
    }
}

/// Waits for one thing; panics when it does not come.
pub async fn within<T>(what: &str, event: impl Future<Output = T>) -> T {
    timeout(PATIENCE, event).await.unwrap_or_else(|_| panic!("never came: {what}"))
}

/// `Ok` when the two are equal, for [`until`].
pub fn equal<T: PartialEq + std::fmt::Debug>(got: &T, wanted: &T) -> Result<(), String> {
    if got == wanted { Ok(()) } else { Err(format!("{got:?}, not {wanted:?}")) }
}
