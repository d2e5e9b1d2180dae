//! Writing, rotating and reading together, on real files.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use crate::clock::{Clock, ManualClock};
use crate::ids::{PodRef, PodUid};
use crate::pod::run::LogRotation;

use super::*;

const UNLIMITED: LogRotation = LogRotation { max_size_bytes: 0, max_files: 2 };

struct Fixture {
    store: LogStore,
    path: PathBuf,
    hand: ManualClock,
    dir: tempfile::TempDir,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let hand = ManualClock::at("2026-01-02T03:04:05Z".parse().unwrap());
    let store = LogStore::open(dir.path(), Clock::from(hand.clone())).unwrap();
    let pod = PodRef { namespace: "default".to_owned(), name: "web-node".to_owned() };
    let path = store.path(&pod, &PodUid::new("abc").unwrap(), "app", 0);
    Fixture { store, path, hand, dir }
}

async fn read(fixture: &Fixture, options: LogOptions) -> String {
    let mut reader = fixture.store.read(&fixture.path, options).await.unwrap();
    let mut text = Vec::new();
    while let Some(chunk) = reader.next().await.unwrap() {
        text.extend_from_slice(&chunk.bytes);
    }
    String::from_utf8(text).unwrap()
}

fn file(fixture: &Fixture) -> String {
    fs::read_to_string(&fixture.path).unwrap()
}

#[test]
fn lines_are_in_the_file_when_write_returns_however_the_guest_cut_them() {
    let fixture = fixture();
    let writer = fixture.store.writer(&fixture.path, UNLIMITED).unwrap();
    writer.write(Stream::Stdout, b"a\n\nhal").unwrap();
    writer.write(Stream::Stderr, b"oops\n").unwrap();
    writer.write(Stream::Stdout, b"f\n").unwrap();
    let t = "2026-01-02T03:04:05.000000000Z";
    let expected = format!("{t} stdout F a\n{t} stdout F \n{t} stderr F oops\n{t} stdout F half\n");
    assert_eq!(file(&fixture), expected);
    assert!(fixture.path.ends_with("default_web-node_abc/app/0.log"));
}

#[test]
fn a_long_line_is_cut_at_16_kib_and_the_rest_is_written_when_the_container_ends() {
    let fixture = fixture();
    let writer = fixture.store.writer(&fixture.path, UNLIMITED).unwrap();
    let long = "x".repeat(16 * 1024);
    writer.write(Stream::Stdout, long.as_bytes()).unwrap();
    assert_eq!(file(&fixture), "", "a line of exactly 16 KiB may still end");
    writer.write(Stream::Stdout, b"\n").unwrap();
    writer.write(Stream::Stdout, format!("{long}{long}end").as_bytes()).unwrap();
    drop(writer);
    let text = file(&fixture);
    let tags: Vec<(bool, usize)> =
        text.lines().map(|l| parse_line(l.as_bytes()).unwrap()).map(|l| (l.complete, l.content.len())).collect();
    assert_eq!(tags, [(true, 16384), (false, 16384), (false, 16384), (false, 3)]);
}

#[tokio::test]
async fn output_joins_cut_lines_again() {
    let fixture = fixture();
    let writer = fixture.store.writer(&fixture.path, UNLIMITED).unwrap();
    let long = "y".repeat(40_000);
    writer.write(Stream::Stdout, format!("{long}\nnext\n").as_bytes()).unwrap();
    assert_eq!(read(&fixture, LogOptions::default()).await, format!("{long}\nnext\n"));
}

#[test]
fn a_half_written_last_line_is_completed_or_taken_back() {
    let t = "2026-01-02T03:04:05.000000000Z";
    for (case, before, after) in [
        ("cut in its content", format!("{t} stdout F a\n{t} stdout F b"), format!("{t} stdout F a\n{t} stdout F b\n")),
        ("cut in its header", format!("{t} stdout F a\n{t} std"), format!("{t} stdout F a\n")),
        ("only a header's beginning", "2026-".to_owned(), String::new()),
        ("whole", format!("{t} stdout F a\n"), format!("{t} stdout F a\n")),
    ] {
        let fixture = fixture();
        fs::create_dir_all(fixture.path.parent().unwrap()).unwrap();
        fs::write(&fixture.path, before).unwrap();
        let writer = fixture.store.writer(&fixture.path, UNLIMITED).unwrap();
        assert_eq!(file(&fixture), after, "{case}");
        writer.write(Stream::Stdout, b"c\n").unwrap();
        assert_eq!(file(&fixture), format!("{after}{t} stdout F c\n"), "{case}");
    }
}

#[test]
fn a_full_disk_loses_lines_but_never_tears_one() {
    let fixture = fixture();
    fs::create_dir_all(fixture.path.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", &fixture.path).unwrap();
    let writer = fixture.store.writer(&fixture.path, UNLIMITED).unwrap();
    let error = writer.write(Stream::Stdout, b"a\nb\n").unwrap_err();
    assert!(error.to_string().contains("No space left on device"), "{error}");
    assert_eq!(writer.lost_lines(), 2);
}

#[test]
fn one_file_has_one_writer() {
    let fixture = fixture();
    let writer = fixture.store.writer(&fixture.path, UNLIMITED).unwrap();
    assert!(matches!(fixture.store.writer(&fixture.path, UNLIMITED), Err(LogError::AlreadyOpen { .. })));
    drop(writer);
    fixture.store.writer(&fixture.path, UNLIMITED).unwrap();
}

#[tokio::test]
async fn rotation_bounds_size_and_count_and_reading_goes_across() {
    let fixture = fixture();
    let rotation = LogRotation { max_size_bytes: 200, max_files: 4 };
    let writer = fixture.store.writer(&fixture.path, rotation).unwrap();
    for n in 0..30 {
        writer.write(Stream::Stdout, format!("line {n}\n").as_bytes()).unwrap();
        if n % 7 == 0 {
            fixture.hand.advance(Duration::from_secs(1));
        }
    }
    // Wait for the compressor: the oldest two of three rotated files become .gz.
    let names = || -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(fixture.path.parent().unwrap())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    for _ in 0..200 {
        if names().iter().filter(|n| n.ends_with(".gz")).count() == 2 && names().len() == 4 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let found = names();
    assert_eq!(found.len(), 4, "{found:?}");
    assert_eq!(found.iter().filter(|n| n.ends_with(".gz")).count(), 2, "{found:?}");
    assert!(fs::metadata(&fixture.path).unwrap().len() <= 200);
    let all = read(&fixture, LogOptions::default()).await;
    let lines: Vec<&str> = all.lines().collect();
    assert_eq!(lines.last(), Some(&"line 29"));
    assert!(lines.len() > 12, "{lines:?}");
    for tail in 0..=lines.len() {
        let options = LogOptions { tail_lines: Some(tail as u64), ..LogOptions::default() };
        let got = read(&fixture, options.clone()).await;
        assert_eq!(got.lines().collect::<Vec<_>>(), lines[lines.len() - tail..], "tail {tail}");
        let filtered = LogOptions { streams: StreamSelection::Stdout, ..options };
        assert_eq!(read(&fixture, filtered).await, got, "tail {tail} of one stream");
    }
}

#[tokio::test]
async fn options_mean_what_kubectl_means() {
    let fixture = fixture();
    let writer = fixture.store.writer(&fixture.path, UNLIMITED).unwrap();
    writer.write(Stream::Stdout, b"one\ntwo\n").unwrap();
    fixture.hand.advance(Duration::from_millis(2500));
    writer.write(Stream::Stderr, b"three\n").unwrap();
    let all = LogOptions::default();
    for (case, options, expected) in [
        ("all", all.clone(), "one\ntwo\nthree\n"),
        ("tail", LogOptions { tail_lines: Some(2), ..all.clone() }, "two\nthree\n"),
        ("tail of nothing", LogOptions { tail_lines: Some(0), ..all.clone() }, ""),
        ("since", LogOptions { since: Some("2026-01-02T03:04:06Z".parse().unwrap()), ..all.clone() }, "three\n"),
        (
            "since is inclusive",
            LogOptions { since: Some("2026-01-02T03:04:07.5Z".parse().unwrap()), ..all.clone() },
            "three\n",
        ),
        ("limit cuts in a line", LogOptions { limit_bytes: Some(6), ..all.clone() }, "one\ntw"),
        ("limit of nothing", LogOptions { limit_bytes: Some(0), ..all.clone() }, ""),
        ("stdout", LogOptions { streams: StreamSelection::Stdout, ..all.clone() }, "one\ntwo\n"),
        (
            "stderr, last line",
            LogOptions { streams: StreamSelection::Stderr, tail_lines: Some(1), ..all.clone() },
            "three\n",
        ),
        (
            "timestamps",
            LogOptions { timestamps: true, tail_lines: Some(1), ..all.clone() },
            "2026-01-02T03:04:07.500000000Z three\n",
        ),
        (
            "follow of the tail while the writer is gone",
            LogOptions { follow: false, tail_lines: Some(1), ..all },
            "three\n",
        ),
    ] {
        assert_eq!(read(&fixture, options).await, expected, "{case}");
    }
}

#[tokio::test]
async fn a_follower_sees_every_line_across_rotations_and_ends_with_the_writer() {
    let fixture = fixture();
    let rotation = LogRotation { max_size_bytes: 2_000, max_files: 50 };
    let writer = fixture.store.writer(&fixture.path, rotation).unwrap();
    writer.write(Stream::Stdout, b"line 0\n").unwrap();
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let reader = fixture.store.read(&fixture.path, options).await.unwrap();
    let follower = tokio::spawn(async move {
        let mut reader = reader;
        let mut text = Vec::new();
        while let Some(chunk) = reader.next().await.unwrap() {
            text.extend_from_slice(&chunk.bytes);
        }
        String::from_utf8(text).unwrap()
    });
    for n in 1..1500 {
        writer.write(Stream::Stdout, format!("line {n}\n").as_bytes()).unwrap();
        if n % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    writer.write(Stream::Stdout, b"no feed").unwrap();
    drop(writer);
    let text = follower.await.unwrap();
    let expected: String = (0..1500).map(|n| format!("line {n}\n")).collect::<String>() + "no feed";
    assert_eq!(text, expected);
}

#[tokio::test]
async fn following_a_container_that_is_not_running_ends_at_once() {
    let fixture = fixture();
    drop(fixture.store.writer(&fixture.path, UNLIMITED).map(|w| w.write(Stream::Stdout, b"done\n")));
    let options = LogOptions { follow: true, ..LogOptions::default() };
    assert_eq!(read(&fixture, options).await, "done\n");
}

#[tokio::test]
async fn a_foreign_or_damaged_line_is_left_out() {
    let fixture = fixture();
    fs::create_dir_all(fixture.path.parent().unwrap()).unwrap();
    let huge = "z".repeat(3 << 20);
    fs::write(
        &fixture.path,
        format!("garbage\n{huge}\n2026-01-02T03:04:05Z stdout F ok\n2026-01-02T03:04:05Z stdout F cut"),
    )
    .unwrap();
    assert_eq!(read(&fixture, LogOptions::default()).await, "ok\ncut\n");
    let error = fixture.store.read(&fixture.dir.path().join("9.log"), LogOptions::default()).await.unwrap_err();
    assert!(matches!(error, LogError::NotFound { .. }));
}

#[test]
fn old_attempts_and_whole_pods_are_removed() {
    let fixture = fixture();
    let (pod, uid) = (PodRef { namespace: "a".into(), name: "b".into() }, PodUid::new("u").unwrap());
    for attempt in [0, 1, 2, 10] {
        let path = fixture.store.path(&pod, &uid, "c", attempt);
        fixture.store.writer(&path, UNLIMITED).unwrap().write(Stream::Stdout, b"x\n").unwrap();
        fs::write(format!("{}.20260102-030405.gz", path.display()), "").unwrap();
    }
    fixture.store.remove_attempts_before(&pod, &uid, "c", 2).unwrap();
    assert_eq!(fixture.store.attempts(&pod, &uid, "c").unwrap(), [2, 10]);
    assert_eq!(fixture.store.usage(&pod, &uid, "c").unwrap(), 2 * 42);
    fixture.store.remove_pod(&pod, &uid).unwrap();
    fixture.store.remove_pod(&pod, &uid).unwrap();
    assert_eq!(fixture.store.attempts(&pod, &uid, "c").unwrap(), Vec::<u32>::new());
    assert!(fixture.store.path(&pod, &uid, "../../etc", 0).starts_with(fixture.store.root()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn whatever_the_cuts_and_rotations_both_streams_come_back(
        writes in proptest::collection::vec((any::<bool>(), "[a-c\n]{0,30}", 1usize..2000), 1..20),
        max_size in prop_oneof![Just(0u64), 100u64..5_000],
    ) {
        let fixture = fixture();
        let writer = fixture.store.writer(&fixture.path, LogRotation { max_size_bytes: max_size, max_files: 1000 }).unwrap();
        let mut expected = [String::new(), String::new()];
        for (is_err, text, repeat) in writes {
            let text = text.repeat(repeat);
            let stream = if is_err { Stream::Stderr } else { Stream::Stdout };
            writer.write(stream, text.as_bytes()).unwrap();
            expected[stream as usize] += &text;
        }
        drop(writer);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for (streams, expected) in [StreamSelection::Stdout, StreamSelection::Stderr].into_iter().zip(expected) {
            let got = runtime.block_on(read(&fixture, LogOptions { streams, ..LogOptions::default() }));
            prop_assert_eq!(got, expected);
        }
    }
}
