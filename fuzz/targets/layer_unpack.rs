//! A layer of any bytes, plain or compressed: unpacked or refused by name; nothing outside the store, no leftovers.

use std::sync::Arc;

use wasilet::ids::Digest;
use wasilet::image::ImageLimits;
use wasilet::image::store::Store;
use wasilet::state::NoFaults;

#[test]
fn layer_unpack() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // Small bounds, so that a bomb is found in little time.
    let limits = ImageLimits { layer_bytes: 1 << 20, ..ImageLimits::default() };
    let store = Store::open(dir.path().join("images"), limits, Arc::new(NoFaults)).expect("the store opens");
    // A panic ends the test; nobody looks at the store after it.
    let store = std::panic::AssertUnwindSafe(store);
    bolero::check!().for_each(|bytes: &[u8]| {
        let blob = store.put_blob(bytes).expect("any bytes can be kept");
        // Plain bytes are their own layer; for compressed ones the diff id is wrong, which must be found out.
        if let Ok(layer) = store.unpack_layer(&blob, &blob) {
            assert!(layer.tar.is_file() && layer.index.is_file());
            assert!(store.has_layer(&blob));
        }
        let other = Digest::of(b"another layer");
        assert!(store.unpack_layer(&blob, &other).is_err());
        assert_eq!(std::fs::read_dir(store.root().join("tmp")).expect("it is there").count(), 0);
        store.remove_leftovers().expect("nobody else has the store");
    });
}
