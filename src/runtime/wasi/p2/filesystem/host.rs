//! The functions of `wasi:filesystem/types` and `preopens`.
//!
//! Each finds its resource, checks the descriptor's rights and calls `vfs`. No policy of its own.

use wasmtime::component::Resource;
use wasmtime_wasi_io::streams::{DynInputStream, DynOutputStream};

use super::super::bindings::filesystem::{preopens, types};
use super::super::errors::{FsError, FsResult, fs_code};
use super::super::streams::{Sink, SinkOutput, Source, SourceInput};
use super::descriptor::{Descriptor, OpenDevice};
use super::directory::DirectoryEntryStream;
use super::streams::{CHUNK, FileInput, FileOutput, Place, write_all};
use super::{View, convert, device};
use crate::errno::Errno;
use crate::vfs::{Dir, Opened};
use types::{DescriptorFlags, ErrorCode, OpenFlags, PathFlags};

/// Bytes that one `write` takes.
const MAX_WRITE: usize = 16 * CHUNK;

/// The interface knows relative paths only; an absolute one would leave the directory it starts from.
fn relative(path: &str) -> FsResult<&str> {
    if path.starts_with('/') { Err(ErrorCode::NotPermitted.into()) } else { Ok(path) }
}

impl preopens::Host for View<'_> {
    /// One directory: the container's root. Volumes are mounted in it.
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
        let root = Descriptor::Directory {
            dir: self.process.namespace().root(),
            flags: DescriptorFlags::READ | DescriptorFlags::MUTATE_DIRECTORY,
        };
        Ok(vec![(self.table.push(root)?, "/".to_owned())])
    }
}

impl types::Host for View<'_> {
    fn convert_error_code(&mut self, error: FsError) -> wasmtime::Result<ErrorCode> {
        error.into_code()
    }

    fn filesystem_error_code(&mut self, error: Resource<wasmtime::Error>) -> wasmtime::Result<Option<ErrorCode>> {
        Ok(self.table.get(&error)?.downcast_ref::<Errno>().copied().map(fs_code))
    }
}

impl View<'_> {
    fn descriptor(&self, descriptor: &Resource<Descriptor>) -> FsResult<&Descriptor> {
        Ok(self.table.get(descriptor)?)
    }

    /// The directory behind `descriptor`, for reading its entries.
    fn at(&self, descriptor: &Resource<Descriptor>) -> FsResult<Dir> {
        Ok(self.descriptor(descriptor)?.directory()?.clone())
    }

    /// The directory behind `descriptor`, for changing its entries.
    fn mutate(&self, descriptor: &Resource<Descriptor>) -> FsResult<Dir> {
        Ok(self.descriptor(descriptor)?.mutable_directory()?.clone())
    }
}

impl types::HostDescriptor for View<'_> {
    fn read_via_stream(&mut self, descriptor: Resource<Descriptor>, offset: u64) -> FsResult<Resource<DynInputStream>> {
        let open = self.descriptor(&descriptor)?;
        open.check(DescriptorFlags::READ)?;
        let stream: DynInputStream = match open {
            Descriptor::Device(device) => Box::new(SourceInput::new(Source::Description(device.description.clone()))),
            open => Box::new(FileInput::new(open.file(DescriptorFlags::READ)?.clone(), offset)),
        };
        Ok(self.table.push(stream)?)
    }

    fn write_via_stream(
        &mut self,
        descriptor: Resource<Descriptor>,
        offset: u64,
    ) -> FsResult<Resource<DynOutputStream>> {
        self.output(&descriptor, Place::At(offset))
    }

    fn append_via_stream(&mut self, descriptor: Resource<Descriptor>) -> FsResult<Resource<DynOutputStream>> {
        self.output(&descriptor, Place::End)
    }

    async fn advise(
        &mut self,
        descriptor: Resource<Descriptor>,
        offset: u64,
        length: u64,
        advice: types::Advice,
    ) -> FsResult<()> {
        let file = self.descriptor(&descriptor)?.file(DescriptorFlags::empty())?.clone();
        Ok(file.advise(offset, length, convert::advice(advice))?)
    }

    async fn sync_data(&mut self, descriptor: Resource<Descriptor>) -> FsResult<()> {
        match self.descriptor(&descriptor)?.clone() {
            Descriptor::File { file, .. } => Ok(file.datasync().await?),
            Descriptor::Directory { dir, .. } => Ok(dir.sync().await?),
            // fsync(2) on a terminal or a pipe: there is nothing it could make durable.
            Descriptor::Device(_) => Err(ErrorCode::Invalid.into()),
        }
    }

    fn get_flags(&mut self, descriptor: Resource<Descriptor>) -> FsResult<DescriptorFlags> {
        Ok(self.descriptor(&descriptor)?.flags())
    }

    async fn get_type(&mut self, descriptor: Resource<Descriptor>) -> FsResult<types::DescriptorType> {
        Ok(convert::descriptor_type(self.descriptor(&descriptor)?.stat().await?.kind))
    }

    async fn set_size(&mut self, descriptor: Resource<Descriptor>, size: u64) -> FsResult<()> {
        // ftruncate(2) answers EINVAL, not EBADF, for a descriptor that cannot be written.
        let open = self.descriptor(&descriptor)?;
        if !open.flags().contains(DescriptorFlags::WRITE) {
            return Err(ErrorCode::Invalid.into());
        }
        let Descriptor::File { file, .. } = open else { return Err(ErrorCode::Invalid.into()) };
        Ok(file.clone().set_len(size).await?)
    }

    async fn set_times(
        &mut self,
        descriptor: Resource<Descriptor>,
        atime: types::NewTimestamp,
        mtime: types::NewTimestamp,
    ) -> FsResult<()> {
        let times = convert::set_times(atime, mtime)?;
        match self.descriptor(&descriptor)?.clone() {
            Descriptor::File { file, .. } => Ok(file.set_times(self.credentials(), times).await?),
            Descriptor::Directory { dir, .. } => Ok(dir.set_times(self.credentials(), times).await?),
            Descriptor::Device(_) => Err(ErrorCode::NotPermitted.into()),
        }
    }

    async fn read(&mut self, descriptor: Resource<Descriptor>, length: u64, offset: u64) -> FsResult<(Vec<u8>, bool)> {
        let file = self.descriptor(&descriptor)?.file(DescriptorFlags::READ)?.clone();
        let mut buffer = vec![0; usize::try_from(length).unwrap_or(CHUNK).min(CHUNK)];
        let read = file.read_at(&mut buffer, offset).await?;
        buffer.truncate(read);
        // A read of nothing says nothing about the end.
        Ok((buffer, read == 0 && length > 0))
    }

    async fn write(&mut self, descriptor: Resource<Descriptor>, buffer: Vec<u8>, offset: u64) -> FsResult<u64> {
        let open = self.descriptor(&descriptor)?;
        let durability = convert::durability(open.flags());
        let file = open.file(DescriptorFlags::WRITE)?.clone();
        // A part is a valid answer, and a guest's hundred megabytes must not hold a thread for a second.
        let part = &buffer[..buffer.len().min(MAX_WRITE)];
        write_all(&file, part, Place::At(offset), durability).await?;
        Ok(part.len() as u64)
    }

    async fn read_directory(&mut self, descriptor: Resource<Descriptor>) -> FsResult<Resource<DirectoryEntryStream>> {
        let dir = self.at(&descriptor)?;
        Ok(self.table.push(DirectoryEntryStream::new(dir))?)
    }

    async fn sync(&mut self, descriptor: Resource<Descriptor>) -> FsResult<()> {
        match self.descriptor(&descriptor)?.clone() {
            Descriptor::File { file, .. } => Ok(file.sync().await?),
            Descriptor::Directory { dir, .. } => Ok(dir.sync().await?),
            Descriptor::Device(_) => Err(ErrorCode::Invalid.into()),
        }
    }

    async fn create_directory_at(&mut self, descriptor: Resource<Descriptor>, path: String) -> FsResult<()> {
        let dir = self.mutate(&descriptor)?;
        Ok(self.namespace().mkdir(&self.creator(), &dir, relative(&path)?, 0o777).await?)
    }

    async fn stat(&mut self, descriptor: Resource<Descriptor>) -> FsResult<types::DescriptorStat> {
        Ok(convert::descriptor_stat(&self.descriptor(&descriptor)?.stat().await?))
    }

    async fn stat_at(
        &mut self,
        descriptor: Resource<Descriptor>,
        flags: PathFlags,
        path: String,
    ) -> FsResult<types::DescriptorStat> {
        let dir = self.at(&descriptor)?;
        let metadata =
            self.namespace().stat(self.credentials(), &dir, relative(&path)?, convert::follow(flags)).await?;
        Ok(convert::descriptor_stat(&metadata))
    }

    async fn set_times_at(
        &mut self,
        descriptor: Resource<Descriptor>,
        flags: PathFlags,
        path: String,
        atime: types::NewTimestamp,
        mtime: types::NewTimestamp,
    ) -> FsResult<()> {
        let dir = self.mutate(&descriptor)?;
        let (follow, times) = (convert::follow(flags), convert::set_times(atime, mtime)?);
        Ok(self.namespace().set_times(self.credentials(), &dir, relative(&path)?, follow, times).await?)
    }

    async fn link_at(
        &mut self,
        descriptor: Resource<Descriptor>,
        old_flags: PathFlags,
        old_path: String,
        new_descriptor: Resource<Descriptor>,
        new_path: String,
    ) -> FsResult<()> {
        let (old, new) = (self.mutate(&descriptor)?, self.mutate(&new_descriptor)?);
        let old = (&old, relative(&old_path)?, convert::follow(old_flags));
        Ok(self.namespace().link(self.credentials(), old, (&new, relative(&new_path)?)).await?)
    }

    async fn open_at(
        &mut self,
        descriptor: Resource<Descriptor>,
        path_flags: PathFlags,
        path: String,
        open_flags: OpenFlags,
        flags: DescriptorFlags,
    ) -> FsResult<Resource<Descriptor>> {
        convert::check_open_flags(open_flags)?;
        let base = self.descriptor(&descriptor)?;
        let mutates = flags.intersects(DescriptorFlags::WRITE | DescriptorFlags::MUTATE_DIRECTORY)
            || open_flags.intersects(OpenFlags::CREATE | OpenFlags::TRUNCATE);
        let dir = if mutates { base.mutable_directory()? } else { base.directory()? }.clone();
        let inherited = base.flags() & DescriptorFlags::MUTATE_DIRECTORY;
        let file_flags = convert::file_flags(flags);
        let path = relative(&path)?;
        let options = convert::open_options(path_flags, open_flags, flags);
        let opened = match self.namespace().open(&self.creator(), &dir, path, options).await? {
            Opened::File(file) => Descriptor::File { file, flags: file_flags },
            // A directory hands on what its parent allows: libcs never ask for `mutate-directory`.
            Opened::Dir(dir) => Descriptor::Directory { dir, flags: DescriptorFlags::READ | inherited },
            Opened::Device(kind) => {
                let follow = convert::follow(path_flags);
                let metadata = self.namespace().stat(self.credentials(), &dir, path, follow).await?;
                let description = device::open(self.process, kind)?;
                Descriptor::Device(OpenDevice { description, metadata, flags: file_flags })
            }
        };
        Ok(self.table.push(opened)?)
    }

    async fn readlink_at(&mut self, descriptor: Resource<Descriptor>, path: String) -> FsResult<String> {
        let dir = self.at(&descriptor)?;
        let target = self.namespace().readlink(self.credentials(), &dir, relative(&path)?).await?;
        Ok(target)
    }

    async fn remove_directory_at(&mut self, descriptor: Resource<Descriptor>, path: String) -> FsResult<()> {
        let dir = self.mutate(&descriptor)?;
        Ok(self.namespace().rmdir(self.credentials(), &dir, relative(&path)?).await?)
    }

    async fn rename_at(
        &mut self,
        descriptor: Resource<Descriptor>,
        old_path: String,
        new_descriptor: Resource<Descriptor>,
        new_path: String,
    ) -> FsResult<()> {
        let (old, new) = (self.mutate(&descriptor)?, self.mutate(&new_descriptor)?);
        let (old_path, new_path) = (relative(&old_path)?, relative(&new_path)?);
        Ok(self.namespace().rename(self.credentials(), &old, old_path, &new, new_path).await?)
    }

    async fn symlink_at(&mut self, descriptor: Resource<Descriptor>, target: String, new_path: String) -> FsResult<()> {
        let dir = self.mutate(&descriptor)?;
        // The target is text: an absolute one is resolved inside the container when it is followed.
        Ok(self.namespace().symlink(self.credentials(), &target, &dir, relative(&new_path)?).await?)
    }

    async fn unlink_file_at(&mut self, descriptor: Resource<Descriptor>, path: String) -> FsResult<()> {
        let dir = self.mutate(&descriptor)?;
        Ok(self.namespace().unlink(self.credentials(), &dir, relative(&path)?).await?)
    }

    async fn is_same_object(&mut self, a: Resource<Descriptor>, b: Resource<Descriptor>) -> wasmtime::Result<bool> {
        let (a, b) = (self.table.get(&a)?.clone(), self.table.get(&b)?.clone());
        let (a, b) = (a.stat().await, b.stat().await);
        Ok(matches!((a, b), (Ok(a), Ok(b)) if (a.dev, a.ino) == (b.dev, b.ino)))
    }

    async fn metadata_hash(&mut self, descriptor: Resource<Descriptor>) -> FsResult<types::MetadataHashValue> {
        Ok(convert::metadata_hash(&self.descriptor(&descriptor)?.stat().await?))
    }

    async fn metadata_hash_at(
        &mut self,
        descriptor: Resource<Descriptor>,
        flags: PathFlags,
        path: String,
    ) -> FsResult<types::MetadataHashValue> {
        let dir = self.at(&descriptor)?;
        let metadata =
            self.namespace().stat(self.credentials(), &dir, relative(&path)?, convert::follow(flags)).await?;
        Ok(convert::metadata_hash(&metadata))
    }

    fn drop(&mut self, descriptor: Resource<Descriptor>) -> wasmtime::Result<()> {
        self.table.delete(descriptor)?;
        Ok(())
    }
}

impl View<'_> {
    fn output(&mut self, descriptor: &Resource<Descriptor>, place: Place) -> FsResult<Resource<DynOutputStream>> {
        let open = self.descriptor(descriptor)?;
        open.check(DescriptorFlags::WRITE)?;
        let stream: DynOutputStream = match open {
            Descriptor::Device(device) => Box::new(SinkOutput::new(Sink::Description(device.description.clone()))),
            open => {
                let file = open.file(DescriptorFlags::WRITE)?.clone();
                Box::new(FileOutput::new(file, place, convert::durability(open.flags())))
            }
        };
        Ok(self.table.push(stream)?)
    }
}

impl types::HostDirectoryEntryStream for View<'_> {
    async fn read_directory_entry(
        &mut self,
        stream: Resource<DirectoryEntryStream>,
    ) -> FsResult<Option<types::DirectoryEntry>> {
        self.table.get_mut(&stream)?.next().await
    }

    fn drop(&mut self, stream: Resource<DirectoryEntryStream>) -> wasmtime::Result<()> {
        self.table.delete(stream)?;
        Ok(())
    }
}
