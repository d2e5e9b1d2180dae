//! Volumes whose content comes after their pod's start: a token that the API server adds to every pod.
//!
//! In: a sandbox that is there. Out: the content, when a guest has come to the volume or there is time; `FailedMount`
//! Events for as long as the API server refuses it, while guests that came wait.

use tokio_util::sync::CancellationToken;

use super::actor::{Done, PodWorker, Subject};
use super::config::Services;
use super::runtime::ContainerRuntime;
use super::sandbox::{FIRST_RETRY, LAST_RETRY, VolumeInput};
use crate::events::{EventType, pod_reference};
use crate::pod::run::VolumeSource;
use crate::volume::VolumeErrors;

impl<R: ContainerRuntime> PodWorker<R> {
    /// Brings what is still to come, until the sandbox goes.
    pub(super) fn bring_deferred(&mut self) {
        let deferred = self.pending_volumes();
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

    /// The volumes whose content is still to come.
    pub(super) fn pending_volumes(&self) -> Vec<String> {
        let deferred = self.volumes.iter().filter(|volume| volume.source == VolumeSource::Deferred);
        let pending = deferred.filter(|volume| self.services.runtime.is_volume_pending(&self.uid, &volume.name));
        pending.map(|volume| volume.name.clone()).collect()
    }
}

async fn bring<R: ContainerRuntime>(
    services: &Services<R>,
    input: &VolumeInput,
    volume: &str,
    refreshing: &tokio::sync::Mutex<()>,
) {
    let backlog = services.status.backlog();
    let wanted = services.runtime.volume_wanted(&input.uid, volume);
    tokio::pin!(wanted);
    let mut is_wanted = false;
    let mut turn = tokio::select! {
        () = &mut wanted => {
            is_wanted = true;
            None
        }
        turn = services.volumes.turn(|| backlog.is_long()) => turn,
    };
    let mut delay = FIRST_RETRY;
    loop {
        let error = {
            let _one_at_a_time = refreshing.lock().await;
            let content = services.volumes.content(input.context(), volume).await;
            match content {
                Ok(content) => return services.runtime.update_volume(&input.uid, volume, content).await,
                Err(error) => error,
            }
        };
        // One that is refused again and again holds up no other's.
        drop(turn.take());
        for message in VolumeErrors(vec![error]).messages() {
            services.events.event(&pod_reference(&input.pod), EventType::Warning, "FailedMount", message);
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => delay = delay.saturating_mul(2).min(LAST_RETRY),
            () = &mut wanted, if !is_wanted => (is_wanted, delay) = (true, FIRST_RETRY),
        }
    }
}
