//! Log files: any bytes in the current and in a compressed file are read to their end, within the limit asked for.

use std::io::Write;

use wasilet::clock::Clock;
use wasilet::logs::{LogOptions, LogStore, StreamSelection};

#[test]
fn log_reader() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    bolero::check!().for_each(|bytes: &[u8]| {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let path = dir.path().join("0.log");
        let (choice, rest) = bytes.split_first().map_or((0, bytes), |(first, rest)| (*first, rest));
        let (old, new) = rest.split_at(rest.len() / 2);
        let archive = std::fs::File::create(dir.path().join("0.log.20260102-030405.gz")).expect("a file can be made");
        // Bit 6: the archive is no gzip at all.
        if choice & 0x40 == 0 {
            let mut encoder = flate2::write::GzEncoder::new(archive, flate2::Compression::fast());
            encoder.write_all(old).and_then(|()| encoder.finish().map(drop)).expect("a file can be written");
        } else {
            (&archive).write_all(old).expect("a file can be written");
        }
        std::fs::write(&path, new).expect("a file can be written");
        let options = LogOptions {
            follow: choice & 1 != 0,
            timestamps: choice & 2 != 0,
            tail_lines: (choice & 4 != 0).then_some(u64::from(choice >> 4)),
            limit_bytes: (choice & 8 != 0).then_some(20),
            streams: if choice & 0x80 == 0 { StreamSelection::All } else { StreamSelection::Stderr },
            since: None,
        };
        let limit = options.limit_bytes.unwrap_or(u64::MAX);
        let store = LogStore::open(dir.path(), Clock::System).expect("a store opens");
        runtime.block_on(async {
            // An archive that is no gzip is an error, not a panic.
            let Ok(mut reader) = store.read(&path, options).await else { return };
            let mut shown = 0;
            while let Ok(Some(chunk)) = reader.next().await {
                shown += chunk.bytes.len() as u64;
            }
            assert!(shown <= limit);
        });
    });
}
