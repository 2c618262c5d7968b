//! Guest images by path, or `example:NAME` for those that nvmx brings along.

use anyhow::{Context, bail};
use nvmx_examples::Params;
use nvmx_machine::{LoadOptions, LoadedImage};
use std::io::Read;
use std::path::Path;

/// More than any image of ours; a file that is larger was not meant.
const MAX_IMAGE: u64 = 1 << 30;

/// An image, ready to boot.
pub(crate) struct Guest {
    /// For messages and snapshots: name, size and CRC-32 of its bytes.
    pub(crate) description: String,
    /// What to load.
    pub(crate) image: LoadedImage,
}

/// What stands beside the image.
pub(crate) struct Extra<'a> {
    pub(crate) command_line: &'a str,
    pub(crate) initrd: Option<&'a Path>,
    pub(crate) memory_size: u64,
    pub(crate) iterations: u32,
}

/// Reads an image.
pub(crate) fn open(name: &str, extra: &Extra<'_>) -> anyhow::Result<Guest> {
    let bytes = match name.strip_prefix("example:") {
        Some(example) => build_example(example, extra.iterations)?,
        None => read(Path::new(name))?,
    };
    let initrd = extra.initrd.map(read).transpose()?;
    let options = LoadOptions {
        cmdline: extra.command_line,
        initrd: initrd.as_deref(),
        memory_size: extra.memory_size,
    };
    let image = nvmx_machine::load(&bytes, options).with_context(|| name.to_owned())?;
    Ok(Guest {
        description: format!("{name}, {} bytes, crc32 {:08x}", bytes.len(), crc32(&bytes)),
        image,
    })
}

fn build_example(name: &str, iterations: u32) -> anyhow::Result<Vec<u8>> {
    let Some(guest) = nvmx_examples::guests::find(name) else {
        let known: Vec<_> = nvmx_examples::guests::all()
            .iter()
            .map(|guest| guest.name)
            .collect();
        bail!(
            "example:{name}: there is no such example; there are {}",
            known.join(", ")
        );
    };
    let params = Params {
        iterations,
        ..Params::default()
    };
    let image = (guest.build)(params).with_context(|| format!("example:{name}"))?;
    Ok(image.to_elf())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let name = || format!("{}: cannot read the image", path.display());
    let file = std::fs::File::open(path).with_context(name)?;
    let mut bytes = Vec::new();
    file.take(MAX_IMAGE + 1)
        .read_to_end(&mut bytes)
        .with_context(name)?;
    if bytes.len() as u64 > MAX_IMAGE {
        bail!(
            "{}: larger than {MAX_IMAGE} bytes, so no guest image",
            path.display()
        );
    }
    Ok(bytes)
}

fn crc32(bytes: &[u8]) -> u32 {
    nvmx_snapshots::pages_file::checksum(bytes)
}
