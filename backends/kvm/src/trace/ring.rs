//! Pages of the trace ring buffer, as `trace_pipe_raw` gives them
//! (Linux `kernel/trace/ring_buffer.c`, `include/linux/ring_buffer.h`).

use super::format::{Field, Format};

/// Where the parts of a page lie: `events/header_page`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageLayout(Format);

/// A record with the time it was written at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Nanoseconds of the trace clock.
    pub time: u64,
    /// The event's bytes, common fields first.
    pub data: Vec<u8>,
}

/// What a page held.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// Records, oldest first.
    pub records: Vec<Record>,
    /// Records that the kernel dropped before this page; at least one if it cannot say how many.
    pub missed: u64,
}

const MISSED_EVENTS: u64 = 1 << 31;
const MISSED_STORED: u64 = 1 << 30;
const COMMIT_SIZE: u64 = (1 << 27) - 1;

const PADDING: u32 = 29;
const TIME_EXTEND: u32 = 30;
const TIME_STAMP: u32 = 31;
/// Bits of a time difference in an event's first word.
const DELTA_BITS: u32 = 27;

impl PageLayout {
    /// x86-64 as it has been for a decade.
    #[must_use]
    pub fn usual() -> Self {
        let field = |name: &str, offset, size| Field {
            name: name.into(),
            offset,
            size,
            data_loc: false,
        };
        Self(Format {
            id: 0,
            fields: vec![
                field("timestamp", 0, 8),
                field("commit", 8, 8),
                field("data", 16, 4080),
            ],
        })
    }

    /// From the text of `header_page`; `None` if it lacks a field.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let format = Format::parse(text);
        for name in ["timestamp", "commit", "data"] {
            format.fields.iter().find(|f| f.name == name)?;
        }
        Some(Self(format))
    }

    /// Reads one page. What does not fit is left out: the kernel is trusted, a short read is not.
    #[must_use]
    pub fn read(&self, page: &[u8]) -> Page {
        let mut result = Page::default();
        let (Some(mut time), Some(commit)) = (
            self.0.number(page, "timestamp"),
            self.0.number(page, "commit"),
        ) else {
            return result;
        };
        let start = self.0.fields.iter().find(|f| f.name == "data");
        let start = start.map_or(page.len(), |f| f.offset);
        let end = start.saturating_add((commit & COMMIT_SIZE) as usize);
        if commit & MISSED_EVENTS != 0 {
            let count = word(page, end).zip(word(page, end + 4));
            result.missed = match count {
                Some((low, high)) if commit & MISSED_STORED != 0 => {
                    u64::from(low) | u64::from(high) << 32
                }
                _ => 1,
            }
            .max(1);
        }
        let events = &page[..end.min(page.len())];
        let mut at = start;
        while let Some(header) = word(events, at) {
            let (kind, delta) = (header & 31, u64::from(header >> 5));
            let extra = word(events, at + 4);
            let (data, next) = match kind {
                0 => {
                    // The length counts its own word.
                    let Some(length) = extra.map(|l| l as usize).filter(|l| *l >= 4) else {
                        break;
                    };
                    (Some(at + 8..at + 4 + length), at + 4 + length)
                }
                PADDING if delta == 0 => break,
                PADDING => (None, at + 4 + extra.unwrap_or(0) as usize),
                TIME_EXTEND | TIME_STAMP => {
                    let wide = u64::from(extra.unwrap_or(0)) << DELTA_BITS | delta;
                    time = if kind == TIME_EXTEND {
                        time.wrapping_add(wide)
                    } else {
                        // The upper five bits do not fit: they stay.
                        wide | time & (0x1f << 59)
                    };
                    at += 8;
                    continue;
                }
                words => {
                    let length = words as usize * 4;
                    (Some(at + 4..at + 4 + length), at + 4 + length)
                }
            };
            time = time.wrapping_add(delta);
            if let Some(range) = data {
                let Some(data) = events.get(range) else { break };
                result.records.push(Record {
                    time,
                    data: data.to_vec(),
                });
            }
            if next <= at {
                break;
            }
            at = next;
        }
        result
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const HEADER_PAGE: &str = "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n\
        \tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;\n\
        \tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n\
        \tfield: char data;\toffset:16;\tsize:4080;\tsigned:1;\n";

    fn page(flags: u64, events: &[u32], behind: &[u8]) -> Vec<u8> {
        let mut page = Vec::new();
        page.extend_from_slice(&1000_u64.to_le_bytes());
        page.extend_from_slice(&(flags | (events.len() as u64 * 4)).to_le_bytes());
        page.extend(events.iter().flat_map(|w| w.to_le_bytes()));
        page.extend_from_slice(behind);
        page.resize(4096, 0);
        page
    }

    #[test]
    fn every_kind_of_event_is_stepped_over_or_read() {
        let layout = PageLayout::parse(HEADER_PAGE).unwrap();
        let bytes = page(
            0,
            &[
                2 | 5 << 5, // two words, 5 ns later
                0x1111,
                0x2222, //
                TIME_EXTEND | 1 << 5,
                1, // 2^27 + 1 ns later
                PADDING | 3 << 5,
                8,
                0, // discarded: eight bytes behind its first word
                4 << 5,
                8,
                0x3333, // a length of its own
                TIME_STAMP | 7 << 5,
                0, // absolute: 7
                1 | 1 << 5,
                0x4444, //
                PADDING,
                99, // end of page
            ],
            &[],
        );
        let page = layout.read(&bytes);
        let times: Vec<_> = page.records.iter().map(|r| r.time).collect();
        assert_eq!(times, [1005, 1005 + (1 << 27) + 1 + 3 + 4, 8]);
        assert_eq!(page.records[0].data.len(), 8);
        assert_eq!(page.records[1].data, 0x3333_u32.to_le_bytes());
        assert_eq!(page.missed, 0);
    }

    #[test]
    fn lost_events_are_counted() {
        let layout = PageLayout::parse(HEADER_PAGE).unwrap();
        let flags = MISSED_EVENTS | MISSED_STORED;
        let bytes = page(flags, &[1, 5], &42_u64.to_le_bytes());
        assert_eq!(layout.read(&bytes).missed, 42);
        assert_eq!(layout.read(&page(MISSED_EVENTS, &[1, 5], &[])).missed, 1);
    }

    #[test]
    fn no_page_makes_it_panic_or_hang() {
        let layout = PageLayout::parse(HEADER_PAGE).unwrap();
        let mut bytes = page(0, &[2, 1, 2, 0, 12, 3, 4, 5], &[]);
        for length in 0..bytes.len().min(80) {
            let _ = layout.read(&bytes[..length]);
        }
        for at in 0..64 {
            for value in [0, 1, 29, 30, 31, 0x7f, 0x80, 0xff] {
                let old = std::mem::replace(&mut bytes[at], value);
                let _ = layout.read(&bytes);
                bytes[at] = old;
            }
        }
    }
}
