//! Owns: a pointer through which the compiler does not look.
//!
//! Why: in each method of an asynchronous trait the compiler proves again, for all that the method's future holds, that it may go from
//! thread to thread. Plans and states of the planner have some thousand types, and the proof took 4 s a method: 130 of the 143 s of
//! a check of this package. Behind this pointer it is proven once, where the pointer is made.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

/// A shared value, whose type's parts the compiler does not see.
pub struct Opaque<T> {
    value: Arc<dyn Any + Send + Sync>,
    /// A function's type is `Send` and `Sync` whatever it returns.
    of: PhantomData<fn() -> T>,
}

impl<T: Any + Send + Sync> Opaque<T> {
    /// A pointer to `value`.
    pub fn new(value: T) -> Opaque<T> {
        Opaque { value: Arc::new(value), of: PhantomData }
    }
}

impl<T: Any> Deref for Opaque<T> {
    type Target = T;

    fn deref(&self) -> &T {
        let Some(value) = self.value.downcast_ref() else { unreachable!("it was made of a value of this type") };
        value
    }
}

impl<T> Clone for Opaque<T> {
    fn clone(&self) -> Opaque<T> {
        Opaque { value: self.value.clone(), of: PhantomData }
    }
}

impl<T: Any + fmt::Debug> fmt::Debug for Opaque<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.deref().fmt(f)
    }
}
