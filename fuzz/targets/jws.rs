//! Signatures of cluster-info of any bytes: refused by name, never a panic, and only the token's own is accepted.

use wasilet::identity::join::jws;
use wasilet::identity::join::token::{BootstrapToken, Pins};

#[test]
fn jws() {
    let token: BootstrapToken = "abcdef.0123456789abcdef".parse().expect("a token");
    bolero::check!().for_each(|bytes: &[u8]| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let (signature, content) = text.split_once('\n').unwrap_or((text, ""));
        if jws::verify(signature, content, &token).is_ok() {
            assert!(jws::verify(signature, &format!("{content}x"), &token).is_err());
        }
        let own = jws::sign(content, &token);
        assert!(jws::verify(&own, content, &token).is_ok());
        // A change anywhere in it is found out.
        let at = bytes.first().map_or(0, |&byte| usize::from(byte) % own.len());
        let changed: String =
            own.char_indices().map(|(i, c)| if i == at { if c == 'A' { 'B' } else { 'A' } } else { c }).collect();
        assert!(jws::verify(&changed, content, &token).is_err(), "{changed}");

        if let Ok(token) = text.parse::<BootstrapToken>() {
            assert_eq!(token.bearer(), text);
        }
        if let Ok(pins) = Pins::parse(&[text]) {
            assert!(!pins.is_empty());
        }
    });
}
