//! Header blocks of SPDY/3: names and values behind one zlib stream for each direction of a connection.
//!
//! In: compressed blocks, in the order they came. Out: names and values, and back. Pure; bounded in what a small block
//! can grow to.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::SpdyError;
use super::dictionary::DICTIONARY;

/// Bytes of a header block once decompressed. Kubernetes' clients send under 100.
pub const MAX_BLOCK_BYTES: usize = 64 * 1024;
/// Headers of a block; `moby/spdystream` takes 1000, its clients send 3.
pub const MAX_HEADERS: usize = 256;

/// Headers of a frame: names in lower case, values as sent (several of one name are joined by NUL).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// No headers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a header; its name is written in lower case.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.0.push((name.to_ascii_lowercase(), value.to_owned()));
        self
    }

    /// The value of a header, whose name is given in lower case. Empty is none, as for Go's `Header.Get`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        found.map(|value| value.split('\0').next().unwrap_or_default()).filter(|value| !value.is_empty())
    }

    fn to_block(&self) -> Vec<u8> {
        let mut block = Vec::new();
        let mut put = |bytes: &[u8]| {
            block.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            block.extend_from_slice(bytes);
        };
        for (name, value) in &self.0 {
            put(name.as_bytes());
            put(value.as_bytes());
        }
        let mut counted = (self.0.len() as u32).to_be_bytes().to_vec();
        counted.append(&mut block);
        counted
    }

    fn from_block(mut block: &[u8]) -> Result<Self, SpdyError> {
        let count = take_number(&mut block)?;
        if count > MAX_HEADERS {
            return Err(SpdyError::HeadersTooLarge);
        }
        let mut headers: Vec<(String, String)> = Vec::with_capacity(count);
        for _ in 0..count {
            let name = take_text(&mut block)?;
            if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                return Err(SpdyError::BadHeaders("a name is not in lower case"));
            }
            if headers.iter().any(|(known, _)| *known == name) {
                return Err(SpdyError::BadHeaders("a name is there twice"));
            }
            headers.push((name, take_text(&mut block)?));
        }
        if block.is_empty() { Ok(Self(headers)) } else { Err(SpdyError::BadHeaders("there is more than its headers")) }
    }
}

fn take_number(block: &mut &[u8]) -> Result<usize, SpdyError> {
    let (number, rest) = block.split_first_chunk::<4>().ok_or(SpdyError::BadHeaders("it is cut short"))?;
    *block = rest;
    Ok(u32::from_be_bytes(*number) as usize)
}

fn take_text(block: &mut &[u8]) -> Result<String, SpdyError> {
    let length = take_number(block)?;
    let (text, rest) = block.split_at_checked(length).ok_or(SpdyError::BadHeaders("it is cut short"))?;
    *block = rest;
    String::from_utf8(text.to_vec()).map_err(|_| SpdyError::BadHeaders("it is not UTF-8"))
}

/// Compresses the headers of one direction of a connection.
#[derive(Debug)]
pub struct HeaderEncoder(Compress);

impl HeaderEncoder {
    /// The state at the start of a connection.
    #[must_use]
    pub fn new() -> Self {
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(DICTIONARY).expect("a new zlib stream takes a dictionary");
        Self(zlib)
    }

    /// Appends the compressed block.
    pub fn encode(&mut self, headers: &Headers, out: &mut Vec<u8>) {
        let block = headers.to_block();
        let mut rest = block.as_slice();
        loop {
            // Room is left over after the last call: that is how zlib says that the flush is complete.
            out.reserve(rest.len() / 2 + 256);
            let before = self.0.total_in();
            self.0.compress_vec(rest, out, FlushCompress::Sync).expect("zlib compresses any bytes");
            rest = &rest[(self.0.total_in() - before) as usize..];
            if rest.is_empty() && out.len() < out.capacity() {
                return;
            }
        }
    }
}

impl Default for HeaderEncoder {
    fn default() -> Self {
        Self::new()
    }
}

/// Decompresses the headers of one direction of a connection.
#[derive(Debug)]
pub struct HeaderDecoder(Decompress);

impl HeaderDecoder {
    /// The state at the start of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Reads the next block of the connection.
    ///
    /// # Errors
    /// [`SpdyError`]; what follows on the connection cannot be read then.
    pub fn decode(&mut self, compressed: &[u8]) -> Result<Headers, SpdyError> {
        let mut rest = compressed;
        let mut block = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress(rest, &mut chunk, FlushDecompress::Sync);
            let read = (self.0.total_in() - before_in) as usize;
            let written = (self.0.total_out() - before_out) as usize;
            rest = rest.get(read..).ok_or(SpdyError::Compression)?;
            if block.len() + written > MAX_BLOCK_BYTES {
                return Err(SpdyError::HeadersTooLarge);
            }
            block.extend_from_slice(&chunk[..written]);
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(DICTIONARY).map_err(|_| SpdyError::Compression)?;
                }
                // The stream of a connection never ends.
                Err(_) | Ok(Status::StreamEnd) => return Err(SpdyError::Compression),
                Ok(Status::Ok | Status::BufError) if rest.is_empty() && written < chunk.len() => break,
                Ok(Status::BufError) if read == 0 && written == 0 => return Err(SpdyError::Compression),
                Ok(Status::Ok | Status::BufError) => {}
            }
        }
        Headers::from_block(&block)
    }
}

impl Default for HeaderDecoder {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The first headers of every exec.
    fn hello() -> Headers {
        Headers::new().with("streamType", "error")
    }

    #[test]
    fn blocks_of_a_connection_share_one_compression() {
        let (mut encoder, mut decoder) = (HeaderEncoder::new(), HeaderDecoder::new());
        let mut sizes = Vec::new();
        for _ in 0..3 {
            let mut block = Vec::new();
            encoder.encode(&hello(), &mut block);
            sizes.push(block.len());
            assert_eq!(decoder.decode(&block), Ok(hello()));
        }
        assert!(sizes[1] < sizes[0], "the second refers to the first: {sizes:?}");
    }

    #[test]
    fn a_name_is_found_and_an_empty_value_is_none() {
        let headers = Headers::new().with("Port", "80\x00443").with("requestID", "");
        assert_eq!((headers.get("port"), headers.get("requestid"), headers.get("other")), (Some("80"), None, None));
    }

    #[test]
    fn a_hostile_block_is_refused() {
        let compressed = |block: &[u8]| {
            let mut zlib = Compress::new(Compression::best(), true);
            zlib.set_dictionary(DICTIONARY).unwrap();
            let mut out = Vec::with_capacity(1 << 16);
            zlib.compress_vec(block, &mut out, FlushCompress::Sync).unwrap();
            out
        };
        let bomb = vec![0; 1 << 20];
        let many = (MAX_HEADERS as u32 + 1).to_be_bytes();
        let upper = [&1_u32.to_be_bytes()[..], &1_u32.to_be_bytes(), b"A", &0_u32.to_be_bytes()].concat();
        let long = [&1_u32.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat();
        for (case, block, expected) in [
            ("a bomb", compressed(&bomb), SpdyError::HeadersTooLarge),
            ("too many headers", compressed(&many), SpdyError::HeadersTooLarge),
            ("a name in upper case", compressed(&upper), SpdyError::BadHeaders("a name is not in lower case")),
            ("a length beyond the block", compressed(&long), SpdyError::BadHeaders("it is cut short")),
            ("nothing", Vec::new(), SpdyError::BadHeaders("it is cut short")),
            ("not zlib", b"not zlib at all".to_vec(), SpdyError::Compression),
        ] {
            assert_eq!(HeaderDecoder::new().decode(&block), Err(expected), "{case}");
        }
    }

    proptest! {
        #[test]
        fn headers_survive_the_wire(
            blocks in prop::collection::vec(prop::collection::btree_map("[a-z0-9-]{0,20}", "\\PC{0,200}", 0..8), 1..6),
        ) {
            let (mut encoder, mut decoder) = (HeaderEncoder::new(), HeaderDecoder::new());
            for block in blocks {
                let headers = Headers(block.into_iter().collect());
                let mut bytes = Vec::new();
                encoder.encode(&headers, &mut bytes);
                prop_assert_eq!(decoder.decode(&bytes), Ok(headers));
            }
        }
    }
}
