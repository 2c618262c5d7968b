//! Guest images by path, or `example:NAME` for those that nvmx brings along.

use anyhow::{Context, bail};
use nvmx_examples::Params;
use nvmx_machine::{LoadOptions, LoadedImage, Module};
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
    /// The files beside it, one after the other.
    pub(crate) initrd: Vec<u8>,
}

/// What stands beside the image.
pub(crate) struct Extra<'a> {
    pub(crate) command_line: &'a str,
    pub(crate) initrd: Option<&'a str>,
    pub(crate) memory_size: u64,
    pub(crate) iterations: u32,
}

/// Reads an image.
pub(crate) fn open(name: &str, extra: &Extra<'_>) -> anyhow::Result<Guest> {
    let bytes = match name.strip_prefix("example:") {
        Some(example) => build_example(example, extra.iterations)?,
        None => read(Path::new(name))?,
    };
    let files = extra.initrd.map_or_else(Vec::new, modules);
    let contents = files
        .iter()
        .map(|(path, _)| read(Path::new(path)))
        .collect::<Result<Vec<_>, _>>()?;
    let modules: Vec<_> = files
        .iter()
        .zip(&contents)
        .map(|((_, cmdline), data)| Module { cmdline, data })
        .collect();
    let options = LoadOptions {
        // An example takes no command line.
        name: if name.starts_with("example:") {
            ""
        } else {
            name
        },
        cmdline: extra.command_line,
        modules: &modules,
        memory_size: extra.memory_size,
    };
    let image = nvmx_machine::load(&bytes, options).with_context(|| name.to_owned())?;
    Ok(Guest {
        description: format!("{name}, {} bytes, crc32 {:08x}", bytes.len(), crc32(&bytes)),
        image,
        initrd: contents.concat(),
    })
}

/// The files that `--initrd` names, each with its command line: the whole text is one file if there is
/// such a file; else commas part them, two commas are one that does not, and a file's name ends at the
/// first space, as QEMU has it.
fn modules(text: &str) -> Vec<(String, String)> {
    if Path::new(text).exists() {
        return vec![(text.into(), text.into())];
    }
    let mut modules = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        if next == ',' && rest.next_if_eq(&',').is_none() {
            modules.push(String::new());
        } else if let Some(module) = modules.last_mut() {
            module.push(next);
        }
    }
    modules
        .into_iter()
        .map(|module| {
            let name = module.split(' ').next().unwrap_or(&module).to_owned();
            (name, module)
        })
        .collect()
}

fn build_example(name: &str, iterations: u32) -> anyhow::Result<Vec<u8>> {
    let Some(guest) = nvmx_examples::guests::find(name) else {
        let known: Vec<_> = nvmx_examples::guests::all()
            .iter()
            .chain(nvmx_examples::guests::several())
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

#[cfg(test)]
mod tests {
    use super::modules;

    #[test]
    fn modules_are_parted_as_qemu_parts_them() {
        let cases: [(&str, &[(&str, &str)]); 4] = [
            ("/none/a", &[("/none/a", "/none/a")]),
            (
                "/none/a one two,/none/b",
                &[("/none/a", "/none/a one two"), ("/none/b", "/none/b")],
            ),
            (
                "/none/a x=1,,2,/none/,,b",
                &[("/none/a", "/none/a x=1,2"), ("/none/,b", "/none/,b")],
            ),
            ("/none/a,", &[("/none/a", "/none/a"), ("", "")]),
        ];
        for (text, expected) in cases {
            let modules = modules(text);
            let modules: Vec<_> = modules
                .iter()
                .map(|(name, line)| (name.as_str(), line.as_str()))
                .collect();
            assert_eq!(modules, expected, "{text}");
        }
    }
}
