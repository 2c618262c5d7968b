//! Little-endian reads that name what they missed.

use super::ImageError;

/// `length` bytes at `offset`.
pub(super) fn bytes<'a>(
    image: &'a [u8],
    offset: u64,
    length: u64,
    field: &'static str,
) -> Result<&'a [u8], ImageError> {
    let missing = || {
        ImageError::new(
            offset,
            field,
            format!("{length:#x} bytes end behind the file's {:#x}", image.len()),
        )
    };
    let start = usize::try_from(offset).map_err(|_| missing())?;
    let length = usize::try_from(length).map_err(|_| missing())?;
    let end = start.checked_add(length).ok_or_else(missing)?;
    image.get(start..end).ok_or_else(missing)
}

/// An unsigned value of `size` bytes (2, 4 or 8).
pub(super) fn uint(
    image: &[u8],
    offset: u64,
    size: u64,
    field: &'static str,
) -> Result<u64, ImageError> {
    Ok(bytes(image, offset, size, field)?
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte)))
}
