//! Image names of any bytes: parsed or refused, never a panic; what is parsed reads back as itself.

use wasilet::image::ImageRef;

#[test]
fn image_ref() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        match text.parse::<ImageRef>() {
            Ok(image) => {
                let full = image.to_string();
                assert_eq!(full.parse::<ImageRef>().as_ref(), Ok(&image), "{full}");
                assert_eq!(image.familiar().parse::<ImageRef>(), Ok(image), "{full}");
                // It becomes part of a URL and of messages.
                assert!(full.bytes().all(|c| c.is_ascii_graphic()) && !full.contains(".."), "{full}");
            }
            Err(error) => assert!(error.to_string().len() < 1024),
        }
    });
}
