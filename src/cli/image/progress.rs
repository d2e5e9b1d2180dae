//! What a person sees of a pull: bars on a terminal, lines elsewhere.
//!
//! In: [`PullProgress`]. Out: stderr. Keeps the lines few: a log file is not a terminal.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::Arc;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use crate::ids::Digest;
use crate::image::{ImageRef, Progress, PullProgress};

/// The progress of one pull.
pub(super) struct Display {
    listener: Progress,
    bars: MultiProgress,
}

impl Display {
    pub(super) fn new(image: &ImageRef) -> Self {
        let bars = MultiProgress::new();
        let listener: Progress =
            if std::io::stderr().is_terminal() { bar_listener(image, &bars) } else { line_listener(image) };
        Self { listener, bars }
    }

    pub(super) fn listener(&self) -> Progress {
        Arc::clone(&self.listener)
    }

    /// Takes the bars away.
    pub(super) fn finish(self) {
        // A terminal that is gone needs no cleaning.
        let _ = self.bars.clear();
    }
}

fn line_listener(image: &ImageRef) -> Progress {
    let image = image.to_string();
    Arc::new(move |step| {
        if let Some(line) = line(&image, &step) {
            eprintln!("{line}");
        }
    })
}

/// The kubelet's Event messages, where it has one.
fn line(image: &str, step: &PullProgress) -> Option<String> {
    Some(match step {
        PullProgress::AlreadyPresent => format!("Container image \"{image}\" already present on machine"),
        PullProgress::Pulling => format!("Pulling image \"{image}\""),
        PullProgress::Resolved { blobs, bytes, .. } => format!("{image}: {blobs} blobs to download, {bytes} bytes"),
        PullProgress::Downloading { digest, done, total } if done == total => {
            format!("{image}: {} downloaded, {total} bytes", short(digest))
        }
        PullProgress::Downloading { .. } => return None,
        PullProgress::Retrying { digest, attempt, error } => {
            format!("{image}: {} broke off, attempt {attempt}: {error}", short(digest))
        }
        PullProgress::Unpacking { digest } => format!("{image}: unpacking {}", short(digest)),
        PullProgress::Pulled { took, size } => {
            format!("Successfully pulled image \"{image}\" in {}ms. Image size: {size} bytes.", took.as_millis())
        }
    })
}

fn short(digest: &Digest) -> &str {
    &digest.hex()[..12]
}

fn bar_listener(image: &ImageRef, bars: &MultiProgress) -> Progress {
    let status = bars.add(ProgressBar::new_spinner());
    status.enable_steady_tick(std::time::Duration::from_millis(120));
    status.set_message(image.to_string());
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {msg}")
        .expect("the template is well-formed")
        .progress_chars("=> ");
    let (bars, blobs) = (bars.clone(), Mutex::new(HashMap::<Digest, ProgressBar>::new()));
    let image = image.to_string();
    Arc::new(move |step| {
        let bar_of = |digest: &Digest, total: u64| {
            let mut blobs = blobs.lock();
            let new = || {
                let bar = bars.add(ProgressBar::new(total));
                bar.set_style(style.clone());
                bar.set_prefix(short(digest).to_owned());
                bar
            };
            blobs.entry(digest.clone()).or_insert_with(new).clone()
        };
        match &step {
            PullProgress::Downloading { digest, done, total } => {
                let bar = bar_of(digest, *total);
                bar.set_position(*done);
                if done == total {
                    bar.finish_with_message("done");
                }
            }
            PullProgress::Retrying { digest, attempt, .. } => {
                bar_of(digest, 0).set_message(format!("attempt {attempt}"));
            }
            other => {
                if let Some(line) = line(&image, other) {
                    status.set_message(line);
                }
            }
        }
    })
}
