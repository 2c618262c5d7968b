//! The `.pages` file: guest memory beside a snapshot's text.
//!
//! ```text
//! header   72 bytes, its last four a CRC-32 of the others: the file's identity
//! index    zstd: page entries (page u64, content u32), then a chunk table (length u32, CRC-32 u32)
//! chunks   zstd, 256 pages each, the last shorter
//! ```
//! All numbers are little-endian. The header holds the CRC-32 of the unpacked index and the index
//! those of the unpacked chunks, so that the one number in the text file vouches for all of it.
//! In a delta, content number `0xffff_ffff` says that the page is zero although the base's is not.

use crate::atomic;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::pages::{PAGE, PageStore};
use rayon::prelude::*;
use std::io::Read;
use std::path::Path;

const MAGIC: &[u8; 8] = b"NVMXPAGE";
const VERSION: u32 = 1;
const DELTA: u32 = 1;
const HEADER: usize = 72;
const CHUNK_PAGES: usize = 256;
const ENTRY: usize = 12;
const ZEROED: u32 = u32::MAX;

/// What a `.pages` file holds.
#[derive(Debug)]
pub struct PagesFile {
    /// The pages: all of memory, or what differs from the base.
    pub store: PageStore,
    /// For a delta: pages that are zero although the base's are not.
    pub zeroed: Option<Vec<u64>>,
    /// The file's identity.
    pub identity: u32,
}

impl PagesFile {
    /// All of memory, given what the base holds.
    #[must_use]
    pub fn onto(self, base: &PageStore) -> PageStore {
        let mut all = base.clone();
        for &(page, _) in self.store.index() {
            all.set(page, self.store.page(page));
        }
        for page in self.zeroed.unwrap_or_default() {
            all.set(page, &[0; PAGE]);
        }
        all
    }
}

/// Writes all of `store`, or what differs from `base`; answers the file's identity.
pub fn write(path: &Path, store: &PageStore, base: Option<&PageStore>) -> Result<u32> {
    let mut delta = PageStore::new(store.memory_size());
    let mut zeroed = Vec::new();
    if let Some(base) = base {
        for page in store.changed_pages(base) {
            let bytes = store.page(page);
            if *bytes == [0; PAGE] {
                zeroed.push(page);
            } else {
                delta.set(page, bytes);
            }
        }
    }
    let source = if base.is_some() { &delta } else { store };
    let (bytes, identity) = encode(source, base.map(|_| zeroed.as_slice()))
        .map_err(|e| Error::io(path, "compress", e))?;
    atomic::write(path, |w| {
        bytes.iter().try_for_each(|part| w.write_all(part))
    })?;
    Ok(identity)
}

fn encode(store: &PageStore, zeroed: Option<&[u64]>) -> std::io::Result<(Vec<Vec<u8>>, u32)> {
    // Only what the index names: a page that was overwritten leaves its old content behind.
    let mut packed = PageStore::new(store.memory_size());
    let mut entries: Vec<(u64, u32)> = store
        .index()
        .iter()
        .map(|&(page, _)| (page, packed.intern(store.page(page)).0))
        .collect();
    entries.extend(
        zeroed
            .unwrap_or_default()
            .iter()
            .map(|&page| (page, ZEROED)),
    );
    entries.sort_unstable();

    let chunks = packed
        .contents()
        .par_chunks(CHUNK_PAGES * PAGE)
        .map(|chunk| Ok((crc32fast::hash(chunk), zstd::bulk::compress(chunk, 3)?)))
        .collect::<std::io::Result<Vec<_>>>()?;

    let mut index = Vec::with_capacity(entries.len() * ENTRY + chunks.len() * 8);
    for (page, content) in &entries {
        index.extend(page.to_le_bytes());
        index.extend(content.to_le_bytes());
    }
    for (crc, chunk) in &chunks {
        index.extend((chunk.len() as u32).to_le_bytes());
        index.extend(crc.to_le_bytes());
    }
    let packed_index = zstd::bulk::compress(&index, 3)?;

    let mut header = Vec::with_capacity(HEADER);
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend((if zeroed.is_some() { DELTA } else { 0 }).to_le_bytes());
    header.extend(store.memory_size().to_le_bytes());
    header.extend((entries.len() as u64).to_le_bytes());
    header.extend((packed.distinct() as u64).to_le_bytes());
    header.extend((packed_index.len() as u64).to_le_bytes());
    header.extend(crc32fast::hash(&index).to_le_bytes());
    header.resize(HEADER - 4, 0);
    let identity = crc32fast::hash(&header);
    header.extend(identity.to_le_bytes());

    let mut parts = vec![header, packed_index];
    parts.extend(chunks.into_iter().map(|(_, chunk)| chunk));
    Ok((parts, identity))
}

/// Reads a `.pages` file.
pub fn read(path: &Path, limits: &Limits) -> Result<PagesFile> {
    let mut file = std::fs::File::open(path).map_err(|e| Error::io(path, "read", e))?;
    decode(path, &mut file, limits)
}

/// The CRC-32 that the file uses, for whoever wants to name bytes by it.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(|b| b.first_chunk())
        .map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Reads from any stream; `path` is for messages.
pub fn decode(path: &Path, input: &mut dyn Read, limits: &Limits) -> Result<PagesFile> {
    let bad = |place: String, reason: &str| Error::content(path, place, reason);
    let mut header = [0; HEADER];
    read_exactly(path, input, &mut header, "header")?;
    if &header[..8] != MAGIC {
        return Err(bad(
            "byte 0".into(),
            "not a page file: the magic number is not NVMXPAGE",
        ));
    }
    if u32_at(&header, 8) != VERSION {
        let reason = format!(
            "version {}, this program reads {VERSION}",
            u32_at(&header, 8)
        );
        return Err(bad("byte 8".into(), &reason));
    }
    let identity = u32_at(&header, HEADER - 4);
    if crc32fast::hash(&header[..HEADER - 4]) != identity {
        return Err(bad(
            "header".into(),
            "checksum mismatch: the file is damaged",
        ));
    }
    let flags = u32_at(&header, 12);
    if flags & !DELTA != 0 {
        return Err(bad("byte 12".into(), &format!("unknown flags {flags:#x}")));
    }
    let memory_size = u64_at(&header, 16);
    let (entries, distinct) = (u64_at(&header, 24), u64_at(&header, 32));
    let (packed_index, index_crc) = (u64_at(&header, 40), u32_at(&header, 48));
    if memory_size > limits.memory {
        return Err(too_large(path, memory_size, limits.memory));
    }
    if !memory_size.is_multiple_of(PAGE as u64) || entries > memory_size / PAGE as u64 {
        return Err(bad(
            "header".into(),
            "more pages than the memory has, or a partial page",
        ));
    }
    if distinct > entries {
        return Err(bad("header".into(), "more contents than pages"));
    }
    if packed_index > limits.contents {
        return Err(too_large(path, packed_index, limits.contents));
    }
    if distinct * PAGE as u64 > limits.contents {
        return Err(too_large(path, distinct * PAGE as u64, limits.contents));
    }

    let chunk_count = distinct.div_ceil(CHUNK_PAGES as u64);
    let index_length = entries * ENTRY as u64 + chunk_count * 8;
    let mut packed = Vec::new();
    (&mut *input)
        .take(packed_index)
        .read_to_end(&mut packed)
        .map_err(|e| Error::io(path, "read", e))?;
    let mut index = Vec::new();
    zstd::Decoder::new(&packed[..])
        .and_then(|decoder| decoder.take(index_length + 1).read_to_end(&mut index))
        .map_err(|e| bad("index".into(), &format!("cannot be unpacked: {e}")))?;
    if index.len() as u64 != index_length || crc32fast::hash(&index) != index_crc {
        return Err(bad(
            "index".into(),
            "wrong length or checksum: the file is damaged",
        ));
    }

    let (entry_bytes, table) = index.split_at((entries * ENTRY as u64) as usize);
    let mut store = PageStore::new(memory_size);
    read_chunks(path, input, table, distinct as usize, &mut store)?;
    if input
        .read(&mut [0])
        .map_err(|e| Error::io(path, "read", e))?
        != 0
    {
        return Err(bad("end".into(), "bytes follow the last chunk"));
    }
    let (index, zeroed) = read_index(path, entry_bytes, flags & DELTA != 0, &store)?;
    store.set_index(index);
    Ok(PagesFile {
        store,
        zeroed: (flags & DELTA != 0).then_some(zeroed),
        identity,
    })
}

fn too_large(path: &Path, size: u64, limit: u64) -> Error {
    Error::TooLarge {
        path: path.to_owned(),
        size,
        limit,
    }
}

fn read_exactly(path: &Path, input: &mut dyn Read, buffer: &mut [u8], place: &str) -> Result<()> {
    input.read_exact(buffer).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::content(path, place, "the file ends early"),
        _ => Error::io(path, "read", e),
    })
}

fn read_chunks(
    path: &Path,
    input: &mut dyn Read,
    table: &[u8],
    distinct: usize,
    store: &mut PageStore,
) -> Result<()> {
    // A few at a time in parallel: a bomb of equal pages is found out after the first batch.
    const BATCH: usize = 16;
    let mut left = distinct;
    for (batch_number, batch) in table.chunks(8 * BATCH).enumerate() {
        let mut packed = Vec::new();
        for (i, row) in batch.chunks_exact(8).enumerate() {
            let place = format!("chunk {}", batch_number * BATCH + i);
            let length = u32_at(row, 0) as usize;
            let pages = left.min(CHUNK_PAGES);
            left -= pages;
            if length > zstd::zstd_safe::compress_bound(CHUNK_PAGES * PAGE) {
                return Err(Error::content(
                    path,
                    place,
                    format!("impossible length {length}"),
                ));
            }
            let mut bytes = vec![0; length];
            read_exactly(path, input, &mut bytes, &place)?;
            packed.push((place, bytes, pages * PAGE, u32_at(row, 4)));
        }
        let unpacked: Vec<_> = packed
            .par_iter()
            .map(
                |(place, bytes, length, crc)| match zstd::bulk::decompress(bytes, *length) {
                    Ok(chunk) if chunk.len() == *length && crc32fast::hash(&chunk) == *crc => {
                        Ok(chunk)
                    }
                    Ok(_) => Err(Error::content(
                        path,
                        place,
                        "wrong length or checksum: the file is damaged",
                    )),
                    Err(e) => Err(Error::content(
                        path,
                        place,
                        format!("cannot be unpacked: {e}"),
                    )),
                },
            )
            .collect::<Result<_>>()?;
        for (chunk, (place, ..)) in unpacked.iter().zip(&packed) {
            for bytes in chunk.as_chunks::<PAGE>().0 {
                if *bytes == [0; PAGE] || !store.intern(bytes).1 {
                    return Err(Error::content(
                        path,
                        place,
                        "a page that is zero or stands there twice",
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Page number and content number, ascending.
type PageIndex = Vec<(u64, u32)>;

fn read_index(
    path: &Path,
    bytes: &[u8],
    delta: bool,
    store: &PageStore,
) -> Result<(PageIndex, Vec<u64>)> {
    let mut index = Vec::with_capacity(bytes.len() / ENTRY);
    let mut zeroed = Vec::new();
    let mut next = 0;
    for (i, row) in bytes.chunks_exact(ENTRY).enumerate() {
        let bad = |reason: &str| Error::content(path, format!("index entry {i}"), reason);
        let (page, content) = (u64_at(row, 0), u32_at(row, 8));
        if page < next || page >= store.page_count() {
            return Err(bad("page numbers must ascend and lie inside the memory"));
        }
        next = page + 1;
        if delta && content == ZEROED {
            zeroed.push(page);
        } else if (content as usize) < store.distinct() {
            index.push((page, content));
        } else {
            return Err(bad("there is no such content"));
        }
    }
    Ok((index, zeroed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seed: u8) -> PageStore {
        let mut store = PageStore::new(4 << 20);
        for page in 0..900 {
            let mut bytes = [0; PAGE];
            bytes[..8].copy_from_slice(&(page / 2 + u64::from(seed)).to_le_bytes());
            store.set(page, &bytes);
        }
        store
    }

    fn encoded(store: &PageStore) -> Vec<u8> {
        encode(store, None).unwrap().0.concat()
    }

    fn decoded(bytes: &[u8]) -> Result<PagesFile> {
        decode(Path::new("x.pages"), &mut &bytes[..], &Limits::default())
    }

    #[test]
    fn memory_round_trips_whole_and_as_a_delta() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pages");
        let (base, mut store) = (sample(0), sample(0));
        let identity = write(&path, &store, None).unwrap();
        let read_back = read(&path, &Limits::default()).unwrap();
        assert_eq!((read_back.identity, &read_back.store), (identity, &store));

        store.set(5, &[9; PAGE]);
        store.set(6, &[0; PAGE]);
        write(&path, &store, Some(&base)).unwrap();
        let delta = read(&path, &Limits::default()).unwrap();
        assert_eq!(delta.store.index().len(), 1);
        assert_eq!(delta.zeroed.as_deref(), Some(&[6][..]));
        assert_eq!(delta.onto(&base), store);
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_found() {
        let good = encoded(&sample(1));
        assert!(decoded(&good).is_ok());
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            // A bit that only zstd's own framing ignores may pass, but then nothing has changed.
            if let Ok(file) = decoded(&bytes) {
                assert_eq!(file.store, sample(1), "flip at {at}");
            }
        }
        for length in (0..good.len()).step_by(7) {
            assert!(decoded(&good[..length]).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn claims_beyond_the_limits_are_refused_before_anything_is_allocated() {
        let mut bytes = encoded(&sample(1));
        bytes[16..24].copy_from_slice(&(1_u64 << 50).to_le_bytes());
        let crc = crc32fast::hash(&bytes[..HEADER - 4]);
        bytes[HEADER - 4..HEADER].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(decoded(&bytes), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn a_bomb_of_equal_pages_is_refused() {
        let chunk = zstd::bulk::compress(&vec![1; CHUNK_PAGES * PAGE], 3).unwrap();
        let mut table = Vec::new();
        table.extend((chunk.len() as u32).to_le_bytes());
        table.extend(crc32fast::hash(&vec![1; CHUNK_PAGES * PAGE]).to_le_bytes());
        let mut store = PageStore::new(4 << 20);
        let error = read_chunks(Path::new("x"), &mut &chunk[..], &table, 256, &mut store);
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("stands there twice")
        );
    }
}
