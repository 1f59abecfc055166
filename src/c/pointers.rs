//! Owns: what C passes by pointer: texts, arrays, buffers, places for results, and that none of them is NULL.
//!
//! What must hold: a pointer is checked for NULL before it is used, and the refusal names the argument. [`Text`], [`Array`],
//! [`Space`], [`Buffer`] and [`Count`] have private fields: but for the empty ones, only a caller in C makes them, and `tapestore.h`
//! says what they point to. A function passes an array, a space or a buffer on with the count that C gave for it, and no other.

use std::borrow::Cow;
use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::time::Duration;

use crate::status::{Failure, Status};

/// A place of C for a result.
pub(crate) type Out<'a, T> = Option<&'a mut MaybeUninit<T>>;

/// The argument `name`, which must not be NULL.
pub(crate) fn given<T>(argument: Option<T>, name: &str) -> Result<T, Failure> {
    argument.ok_or_else(|| Failure::new(Status::Invalid, format!("the argument '{name}' is NULL")))
}

/// Puts the handle that `make` makes into the argument `name`. NULL goes there first, before anything can fail: a program
/// that closes what it got after a failure closes NULL.
pub(crate) fn made<T>(
    handle: Out<'_, Option<Box<T>>>,
    name: &str,
    make: impl FnOnce() -> Result<T, Failure>,
) -> Result<Status, Failure> {
    let handle = given(handle, name)?.write(None);
    *handle = Some(Box::new(make()?));
    Ok(Status::Ok)
}

/// A text of C: NULL, or bytes that end with a zero and do not change during the call.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Text<'a>(*const c_char, PhantomData<&'a c_char>);

impl<'a> Text<'a> {
    /// No text.
    pub(crate) const NULL: Text<'a> = Text(std::ptr::null(), PhantomData);

    /// The text of the argument `name`.
    pub(crate) fn get(self, name: &str) -> Result<&'a str, Failure> {
        given((!self.0.is_null()).then_some(()), name)?;
        // SAFETY: it is not NULL, so C has made it: it ends with a zero and does not change during the call.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map_err(|_| Failure::new(Status::Invalid, format!("the argument '{name}' is not UTF-8")))
    }
}

/// The number of values in an array of C, or of bytes in a buffer.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Count(usize);

impl Count {
    /// None.
    pub(crate) const NONE: Count = Count(0);
}

/// An array of C: NULL, or as many values as the [`Count`] that C passes with it, which do not change during the call.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Array<'a, T>(*const T, PhantomData<&'a T>);

impl<'a, T> Array<'a, T> {
    /// No array.
    pub(crate) const NULL: Array<'a, T> = Array(std::ptr::null(), PhantomData);

    /// The values of the argument `name`, whose count is `count`. NULL is an array of none.
    pub(crate) fn get(self, Count(count): Count, name: &str) -> Result<&'a [T], Failure> {
        if count == 0 {
            return Ok(&[]);
        }
        given((!self.0.is_null()).then_some(()), name)?;
        let bytes = count.checked_mul(size_of::<T>()).filter(|bytes| isize::try_from(*bytes).is_ok());
        if bytes.is_none() || !self.0.is_aligned() {
            return Err(Failure::new(Status::Invalid, format!("the argument '{name}' is no array of {count} values")));
        }
        // SAFETY: it is not NULL, is aligned and of a possible length, and C has `count` values there.
        Ok(unsafe { std::slice::from_raw_parts(self.0, count) })
    }
}

/// `bytes` as words, copied if they are not aligned; `None` if the last word is not whole.
pub(crate) fn words(bytes: &[u8]) -> Option<Cow<'_, [u64]>> {
    let (words, []) = bytes.as_chunks() else { return None };
    let copied = |_| words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    Some(bytemuck::try_cast_slice(bytes).map_or_else(|e| Cow::Owned(copied(e)), Cow::Borrowed))
}

/// Memory of C for a record: NULL, or as many bytes as the [`Count`] that C passes with it, which nobody else uses during the
/// call.
#[repr(transparent)]
pub struct Space<'a>(*mut u8, PhantomData<&'a mut u8>);

impl Space<'_> {
    /// Puts `bytes` into the argument `name`, whose size must be theirs and is `count`.
    pub(crate) fn put(self, bytes: &[u8], Count(count): Count, name: &str) -> Result<(), Failure> {
        given((!self.0.is_null()).then_some(()), name)?;
        if bytes.len() != count {
            let reason = format!("the argument '{name}' has {count} bytes, and a record of this kind has {}", bytes.len());
            return Err(Failure::new(Status::Invalid, reason));
        }
        // SAFETY: the memory is not NULL and has `count` bytes, which nobody else uses: so it does not overlap with `bytes`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0, count) };
        Ok(())
    }

    /// What `body` returns of the memory `bytes`.
    #[cfg(test)]
    pub(crate) fn with<T>(bytes: &mut [u8], body: impl FnOnce(Space<'_>, Count) -> T) -> T {
        body(Space(bytes.as_mut_ptr(), PhantomData), Count(bytes.len()))
    }
}

/// A buffer of C for a text: NULL, or as many bytes as the [`Count`] that C passes with it, which nobody else uses during
/// the call.
#[repr(transparent)]
pub struct Buffer<'a>(*mut c_char, PhantomData<&'a mut c_char>);

impl Buffer<'_> {
    /// Puts `text` and a zero into the argument `name`, whose size is `bytes`.
    pub(crate) fn put(self, text: &str, Count(bytes): Count, name: &str) -> Result<(), Failure> {
        given((!self.0.is_null()).then_some(()), name)?;
        let needed = text.len() + 1;
        if needed > bytes {
            let reason = format!("the argument '{name}' has {bytes} bytes, and {needed} are needed");
            return Err(Failure::new(Status::Invalid, reason));
        }
        let with_end: Vec<u8> = text.bytes().chain([0]).collect();
        // SAFETY: the buffer is not NULL and has at least `needed` bytes; a new vector does not overlap with it.
        unsafe { std::ptr::copy_nonoverlapping(with_end.as_ptr(), self.0.cast::<u8>(), needed) };
        Ok(())
    }
}

/// A wait in milliseconds. Longer ones than a century are one.
pub(crate) fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count.min(100 * 365 * 24 * 3600 * 1000))
}
