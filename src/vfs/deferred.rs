//! Content that is brought when somebody first looks at it.
//!
//! In: a guest's walk into a mount whose content is not there, the content's arrival. Out: a wait for the one, word of it
//! for whoever brings the other. Knows nothing of the content.

use tokio::sync::watch;

/// How far the content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nobody has looked.
    Unasked,
    /// Somebody waits for it.
    Asked,
    /// It is there, for good.
    There,
}

/// Between those who look and the one who brings.
#[derive(Debug)]
pub(crate) struct Deferred(watch::Sender<Progress>);

impl Default for Deferred {
    fn default() -> Self {
        Self(watch::Sender::new(Progress::Unasked))
    }
}

impl Deferred {
    pub(crate) fn is_there(&self) -> bool {
        *self.0.borrow() == Progress::There
    }

    /// Asks for the content and waits until it is there: like a program that opens a file of a network's filesystem, for
    /// as long as it takes.
    pub(crate) async fn wait(&self) {
        self.0.send_if_modified(|progress| {
            let first = *progress == Progress::Unasked;
            if first {
                *progress = Progress::Asked;
            }
            first
        });
        self.until(|progress| *progress == Progress::There).await;
    }

    /// Until somebody has looked, or the content is there anyway.
    pub(crate) async fn wanted(&self) {
        self.until(|progress| *progress != Progress::Unasked).await;
    }

    /// The content is there.
    pub(crate) fn brought(&self) {
        self.0.send_if_modified(|progress| std::mem::replace(progress, Progress::There) != Progress::There);
    }

    async fn until(&self, reached: impl FnMut(&Progress) -> bool) {
        // The sender is `self`: it is not dropped while this waits.
        let _ = self.0.subscribe().wait_for(reached).await;
    }
}
