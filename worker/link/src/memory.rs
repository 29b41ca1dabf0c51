//! Memory that an agent and one of its workers map: the one `unsafe` file of this crate.
//!
//! The agent creates it and seals its size, so that no worker can truncate it. Its contents
//! can change while the agent reads, because a model may have taken the worker over: the agent
//! never refers to it, it copies bytes in and out. The worker, which trusts its agent, works on
//! them in place.
#![allow(unsafe_code)]

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

/// The agent's side.
#[derive(Debug)]
pub struct Arena {
    mapping: Mapping,
    file: OwnedFd,
}

/// The worker's side.
#[derive(Debug)]
pub struct Window {
    mapping: Mapping,
}

#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is bound to no thread; what is done with it goes through the methods
// below.
unsafe impl Send for Mapping {}

impl Arena {
    /// New memory of `bytes` zeros with a fixed size.
    ///
    /// # Errors
    /// The system refuses it.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("lamina-tensors", flags)?;
        ftruncate(&file, bytes as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self {
            mapping: Mapping::of(&file, bytes)?,
            file,
        })
    }

    /// Its size in bytes.
    pub const fn bytes(&self) -> usize {
        self.mapping.length
    }

    /// The descriptor for the worker.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Copies `data` to `offset`; returns whether it fits.
    #[must_use]
    pub fn write(&mut self, offset: usize, data: &[u8]) -> bool {
        let Some(start) = self.mapping.at(offset, data.len()) else {
            return false;
        };
        // SAFETY: `at` has checked the range; `data` is this process's own and so no part
        // of the mapping, to which nobody refers.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), start, data.len()) };
        true
    }

    /// A copy of `bytes` from `offset` on; `None` if there are fewer.
    pub fn read(&self, offset: usize, bytes: usize) -> Option<Vec<u8>> {
        let start = self.mapping.at(offset, bytes)?;
        let mut copy = Vec::with_capacity(bytes);
        // SAFETY: `at` has checked the range, the copy has room for `bytes` and all are
        // written. Should the worker write meanwhile, the copy is some mixture of bytes.
        unsafe {
            ptr::copy_nonoverlapping(start, copy.as_mut_ptr(), bytes);
            copy.set_len(bytes);
        }
        Some(copy)
    }
}

impl Window {
    /// The agent's memory, with `bytes`.
    ///
    /// # Errors
    /// It cannot be mapped, or is smaller.
    pub fn new(file: &OwnedFd, bytes: u64) -> io::Result<Self> {
        let held = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
        let length = usize::try_from(bytes).ok().filter(|_| bytes <= held);
        let length = length.ok_or_else(|| io::Error::other("the memory is smaller than said"))?;
        Ok(Self {
            mapping: Mapping::of(file, length)?,
        })
    }

    /// All of it. The agent does not touch it until it is answered.
    pub const fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is as long, and lives as long as `self`, which is borrowed
        // alone. The agent, which made it, touches it only between an answer and the next
        // call.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start.as_ptr(), self.mapping.length) }
    }
}

impl Mapping {
    fn of(file: &OwnedFd, length: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping where the kernel likes it; it disturbs none that is there.
        let start = unsafe { mmap(ptr::null_mut(), length, access, MapFlags::SHARED, file, 0)? };
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("no address"))?;
        Ok(Self { start, length })
    }

    /// The address of `bytes` from `offset` on; `None` if the mapping is shorter.
    fn at(&self, offset: usize, bytes: usize) -> Option<*mut u8> {
        let end = offset.checked_add(bytes)?;
        // SAFETY: within the mapping, or just behind it where nothing is read.
        (end <= self.length).then(|| unsafe { self.start.as_ptr().add(offset) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing refers to it any more. It
        // fails for no mapping of ours.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(arena: &Arena, bytes: u64) -> io::Result<Window> {
        Window::new(&arena.descriptor().try_clone_to_owned().unwrap(), bytes)
    }

    #[test]
    fn both_sides_see_the_same_bytes() {
        let mut arena = Arena::new(8192).unwrap();
        let mut window = window(&arena, 8192).unwrap();
        assert!(arena.write(4094, b"abcd"));
        assert_eq!(&window.bytes()[4094..4098], b"abcd");
        window.bytes()[0] = 7;
        assert_eq!(arena.read(0, 2).unwrap(), [7, 0]);
        assert_eq!(arena.read(8192, 0).map(|read| read.len()), Some(0));
    }

    #[test]
    fn nothing_outside_is_reached() {
        let mut arena = Arena::new(4096).unwrap();
        assert!(!arena.write(4095, b"ab"));
        assert!(!arena.write(usize::MAX, b"ab"));
        assert_eq!(arena.read(4095, 2), None);
        assert_eq!(arena.read(1, usize::MAX), None);
        assert!(window(&arena, 4097).is_err());
    }

    #[test]
    fn a_worker_cannot_cut_it_off() {
        let arena = Arena::new(4096).unwrap();
        let file = arena.descriptor().try_clone_to_owned().unwrap();
        assert!(ftruncate(&file, 0).is_err());
        assert!(ftruncate(&file, 8192).is_err());
        assert!(fcntl_add_seals(&file, SealFlags::WRITE).is_err());
    }
}
