//! Files that appear whole or not at all: written under a temporary name in the same folder,
//! flushed to the disk, then renamed over the old one.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes `path` through `write`. On any failure the old file, if there was one, stays as it was
/// and no temporary file is left behind.
///
/// A path that is no regular file (`/dev/stdout`, a pipe) is written to directly.
pub fn write(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let failed = |source| Error::io(path, "write", source);
    if path.metadata().is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        let mut file = File::options().write(true).open(path).map_err(failed)?;
        return write(&mut file).and_then(|()| file.flush()).map_err(failed);
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let temporary = tempfile::Builder::new()
        .prefix(".nvmx-")
        .suffix(".tmp")
        .permissions(mode())
        .tempfile_in(folder)
        .map_err(failed)?;
    let mut writer = BufWriter::with_capacity(1 << 18, temporary);
    write(&mut writer).map_err(failed)?;
    let temporary = writer.into_inner().map_err(|e| failed(e.into_error()))?;
    temporary.as_file().sync_all().map_err(failed)?;
    temporary.persist(path).map_err(|e| failed(e.error))?;
    // The rename itself reaches the disk with the folder.
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)
}

/// As an ordinary new file: what the umask leaves of rw-rw-rw-.
fn mode() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o666)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        write(&path, |w| w.write_all(b"old")).unwrap();
        let error = write(&path, |w| {
            w.write_all(b"new")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert!(error.to_string().contains("free some space"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_device_is_an_error() {
        let error = write(Path::new("/dev/full"), |w| w.write_all(b"x")).unwrap_err();
        assert!(
            error.to_string().starts_with("/dev/full: cannot write"),
            "{error}"
        );
    }
}
