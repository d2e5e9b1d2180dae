//! Volumes whose content comes after their pod's start: a token that the API server adds to every pod.
//!
//! In: a sandbox that is there. Out: the content, when a guest has come to the volume or there is time; `FailedMount`
//! Events for as long as the API server refuses it, while guests that came wait.

use tokio_util::sync::CancellationToken;

use super::actor::{Done, PodWorker, Subject};
use super::config::Services;
use super::runtime::ContainerRuntime;
use super::sandbox::{FIRST_RETRY, LAST_RETRY, VolumeInput, show};
use crate::events::{EventType, pod_reference};
use crate::objects::Change;
use crate::pod::run::VolumeSource;
use crate::volume::VolumeErrors;

impl<R: ContainerRuntime> PodWorker<R> {
    /// Brings what is still to come, until the sandbox goes.
    pub(super) fn bring_deferred(&mut self) {
        let deferred = self.volumes.iter().filter(|volume| volume.source == VolumeSource::Deferred);
        let deferred: Vec<String> = deferred.map(|volume| volume.name.clone()).collect();
        if deferred.is_empty() {
            return;
        }
        let stop = CancellationToken::new();
        for volume in deferred {
            let (services, input, stop) = (self.services.clone(), self.volume_input(), stop.clone());
            let refreshing = self.refreshing.clone();
            self.spawn(Subject::Side, async move {
                let bringing = bring(&services, &input, &volume, &refreshing);
                let _ = stop.run_until_cancelled(bringing).await;
                Done::Refreshed
            });
        }
        self.bringing = Some(stop.drop_guard());
    }
}

async fn bring<R: ContainerRuntime>(
    services: &Services<R>,
    input: &VolumeInput,
    volume: &str,
    refreshing: &tokio::sync::Mutex<()>,
) {
    let backlog = services.status.backlog();
    let _turn = tokio::select! {
        () = services.runtime.volume_wanted(&input.uid, volume) => None,
        turn = services.volumes.turn(|| backlog.is_long()) => turn,
    };
    let mut delay = FIRST_RETRY;
    loop {
        let errors = {
            let _one_at_a_time = refreshing.lock().await;
            let change = Change::Tokens(input.uid.clone());
            let fetched = services.volumes.fetch(input.context(), Some(&change)).await;
            show(services, input.clone(), Some(change), fetched).await
        };
        if errors.is_empty() {
            return;
        }
        for message in VolumeErrors(errors).messages() {
            services.events.event(&pod_reference(&input.pod), EventType::Warning, "FailedMount", message);
        }
        tokio::time::sleep(delay).await;
        delay = delay.saturating_mul(2).min(LAST_RETRY);
    }
}
