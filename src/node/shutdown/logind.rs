//! logind over D-Bus: the delay inhibitor and the signal before a shutdown.
//!
//! In: the system bus. Out: a file descriptor that holds the shutdown up while it is open, and a stream of
//! `PrepareForShutdown`. See systemd's "Inhibitor Locks". Changes no configuration of logind, as the kubelet would: an admin
//! sets `InhibitDelayMaxSec`.

use std::time::Duration;

use futures::StreamExt as _;
use serde::Serialize;
use zbus::message::Type;
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedFd, OwnedVariant};

const SERVICE: &str = "org.freedesktop.login1";
const OBJECT: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";

/// What of logind could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LogindError {
    /// No system bus.
    #[error("connecting to the system bus")]
    Connect {
        /// Why.
        #[source]
        source: zbus::Error,
    },
    /// logind does not answer.
    #[error("asking logind for {what}")]
    Call {
        /// What was asked for.
        what: &'static str,
        /// Why it was not given.
        #[source]
        source: zbus::Error,
    },
}

/// logind's manager.
pub(super) struct Logind {
    connection: Connection,
}

/// Holds the shutdown up while it lives.
pub(super) struct Inhibitor {
    _lock: OwnedFd,
}

/// `PrepareForShutdown`, true before a shutdown and false when it was cancelled.
pub(super) struct Signals {
    stream: MessageStream,
}

impl Signals {
    /// The next one; `None` when the bus is gone.
    pub(super) async fn next(&mut self) -> Option<bool> {
        loop {
            let message = self.stream.next().await?;
            match message.and_then(|message| message.body().deserialize::<bool>()) {
                Ok(is_starting) => return Some(is_starting),
                Err(error) => tracing::warn!(err = %error, "PrepareForShutdown was not a boolean as expected"),
            }
        }
    }
}

impl Logind {
    /// Connects to the system bus.
    pub(super) async fn connect() -> Result<Self, LogindError> {
        let connection = Connection::system().await.map_err(|source| LogindError::Connect { source })?;
        Ok(Self { connection })
    }

    /// `InhibitDelayMaxSec` of logind.conf.
    pub(super) async fn max_delay(&self) -> Result<Duration, LogindError> {
        const WHAT: &str = "InhibitDelayMaxUSec";
        let failed = |source| LogindError::Call { what: WHAT, source };
        let answer = self.call("org.freedesktop.DBus.Properties", "Get", &(MANAGER, WHAT)).await.map_err(failed)?;
        let value: OwnedVariant = answer.body().deserialize().map_err(failed)?;
        let delay = u64::try_from(value).map_err(failed)?;
        Ok(Duration::from_micros(delay))
    }

    /// Takes the lock.
    pub(super) async fn inhibit(&self) -> Result<Inhibitor, LogindError> {
        let failed = |source| LogindError::Call { what: "an inhibitor", source };
        let arguments = ("shutdown", "wasilet", "Pods are ended before the machine goes down", "delay");
        let answer = self.call(MANAGER, "Inhibit", &arguments).await.map_err(failed)?;
        Ok(Inhibitor { _lock: answer.body().deserialize().map_err(failed)? })
    }

    /// Listens.
    pub(super) async fn prepare_for_shutdown(&self) -> Result<Signals, LogindError> {
        let failed = |source| LogindError::Call { what: "PrepareForShutdown", source };
        let rule = MatchRule::builder().msg_type(Type::Signal).path(OBJECT).interface(MANAGER);
        let rule = rule.member("PrepareForShutdown").build().map_err(failed)?;
        let stream = MessageStream::for_match_rule(rule, &self.connection, None).await.map_err(failed)?;
        Ok(Signals { stream })
    }

    async fn call<B>(&self, interface: &str, method: &str, arguments: &B) -> zbus::Result<Message>
    where
        B: Serialize + zbus::Type + Sync,
    {
        self.connection.call_method(Some(SERVICE), OBJECT, Some(interface), method, arguments).await
    }
}
