//! Owns: aggregates of a window that moves over rows: each row is added once and left out once, however many windows it is in.
//!
//! The rows of a window are in two parts. Of the older part it is known what the rows from each one to its end are together; of the
//! newer part, what all are together. When the older part has no rows any more, the newer one becomes it. Nothing is subtracted: no
//! rounding, infinity or NaN stays of a row that left (Tangwongsan, Hirzel and Schneider, "Low-latency sliding-window aggregation in
//! worst-case constant time", 2017, section 2: the two-stacks algorithm).
//!
//! What must hold: windows begin and end in order: none begins or ends before the one before it. Whole numbers, prices and sizes are
//! added exactly. Of numbers that were calculated the last bits depend on where the parts meet, and so on the windows before.

use std::cmp::Ordering;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, Float64Array, Int64Array, PrimitiveArray};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampNanosecondType, UInt64Type};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::MemoryReservation;

use super::rights::Rights;
use crate::functions::aggregates::{Of, scaled, too_large};
use crate::functions::ordered::Which;

/// How values become one.
pub(super) trait Fold: Send {
    /// What some rows are together.
    type Value: Copy + Send;
    /// The arrays of a batch.
    type Rows<'a>;

    /// The arguments of the rows of a batch.
    fn rows<'a>(&self, arguments: &'a [ArrayRef]) -> Result<Self::Rows<'a>>;

    /// What row `row` is; its arguments are not null, unless [`Fold::TAKES_NULLS`].
    fn of(rows: &Self::Rows<'_>, row: usize) -> Result<Self::Value>;

    /// What `a` and the later `b` are together.
    fn and(&self, a: Self::Value, b: Self::Value) -> Result<Self::Value>;

    /// The aggregates of windows; `None`: the window has no row that counts.
    fn column(&self, windows: Vec<Option<Self::Value>>) -> Result<ArrayRef>;

    /// Whether a row with a null counts.
    const TAKES_NULLS: bool = false;
}

/// An aggregate of the windows of left rows. For each left row: [`Moving::start`], then [`Moving::end`], then [`Moving::take`].
pub(super) trait Moving: Send {
    /// Begins the rows of another key.
    fn begin(&mut self);

    /// Leaves out the rows before the one with the number `first`.
    ///
    /// # Errors
    /// The aggregate cannot be calculated; the memory of the statement is used up.
    fn start(&mut self, rights: &Rights, first: usize) -> Result<()>;

    /// Adds the rows up to the one with the number `end`.
    ///
    /// # Errors
    /// The aggregate cannot be calculated.
    fn end(&mut self, rights: &Rights, end: usize) -> Result<()>;

    /// Makes the value of the window, or of a left row without right rows if that `has_none`.
    ///
    /// # Errors
    /// As [`Moving::end`].
    fn take(&mut self, has_none: bool) -> Result<()>;

    /// The values of the left rows since the last call.
    ///
    /// # Errors
    /// As [`Moving::end`].
    fn taken(&mut self) -> Result<ArrayRef>;
}

/// A fold and what it is of.
struct Folded<F> {
    fold: F,
    /// Where the arguments are among the values of a batch, and the condition.
    arguments: Range<usize>,
    condition: Option<usize>,
}

impl<F: Fold> Folded<F> {
    /// What each of some rows of a batch is; `None`: it does not count.
    fn each<'a>(
        &'a self,
        values: &'a [ArrayRef],
        rows: Range<usize>,
    ) -> Result<impl DoubleEndedIterator<Item = Result<Option<F::Value>>> + 'a> {
        let arguments = values.get(self.arguments.clone()).ok_or_else(wrong)?;
        let boolean = |at| values.get(at).and_then(|array: &ArrayRef| array.as_boolean_opt()).ok_or_else(wrong);
        let condition = self.condition.map(boolean).transpose()?;
        let nulls: Vec<_> = arguments.iter().filter_map(|array| array.nulls()).filter(|_| !F::TAKES_NULLS).collect();
        let folded = self.fold.rows(arguments)?;
        Ok(rows.map(move |row| {
            let counts = nulls.iter().all(|nulls| nulls.is_valid(row))
                && condition.is_none_or(|condition| condition.is_valid(row) && condition.value(row));
            counts.then(|| F::of(&folded, row)).transpose()
        }))
    }

    fn and(&self, a: Option<F::Value>, b: Option<F::Value>) -> Result<Option<F::Value>> {
        match (a, b) {
            (Some(a), Some(b)) => self.fold.and(a, b).map(Some),
            (a, b) => Ok(a.or(b)),
        }
    }
}

/// An aggregate by a fold.
struct Queue<F: Fold> {
    of: Folded<F>,
    /// The values of a row of nulls.
    nothing: Vec<ArrayRef>,
    /// The rows of the window. `older` has what those before `middle` are together, from each one on, the last first; `newer` what
    /// the others are.
    rows: Range<usize>,
    middle: usize,
    older: Vec<Option<F::Value>>,
    newer: Option<F::Value>,
    done: Vec<Option<F::Value>>,
    /// The memory of `older`.
    held: MemoryReservation,
}

impl<F: Fold> Queue<F> {
    /// Makes all rows from `first` on the older part.
    fn turn(&mut self, rights: &Rights, first: usize) -> Result<()> {
        self.older.clear();
        let count = self.rows.end - first;
        if count > self.older.capacity() {
            self.held.try_resize(count * size_of::<Option<F::Value>>())?;
            self.older.reserve_exact(count);
        }
        let mut together = None;
        for (read, rows) in rights.batches(first..self.rows.end).rev() {
            for value in self.of.each(&read.values, rows)?.rev() {
                together = self.of.and(value?, together)?;
                self.older.push(together);
            }
        }
        (self.middle, self.newer) = (self.rows.end, None);
        Ok(())
    }
}

impl<F: Fold> Moving for Queue<F> {
    fn begin(&mut self) {
        self.older = Vec::new();
        self.held.free();
        (self.rows, self.middle, self.newer) = (0..0, 0, None);
    }

    fn start(&mut self, rights: &Rights, first: usize) -> Result<()> {
        if first >= self.rows.end {
            self.older.clear();
            (self.rows, self.middle, self.newer) = (first..first, first, None);
        } else if first > self.rows.start {
            match self.middle.checked_sub(first).filter(|count| *count > 0) {
                Some(count) => self.older.truncate(count),
                None => self.turn(rights, first)?,
            }
            self.rows.start = first;
        }
        Ok(())
    }

    fn end(&mut self, rights: &Rights, end: usize) -> Result<()> {
        for (read, rows) in rights.batches(self.rows.end..end) {
            for value in self.of.each(&read.values, rows)? {
                self.newer = self.of.and(self.newer, value?)?;
            }
        }
        self.rows.end = end;
        Ok(())
    }

    fn take(&mut self, has_none: bool) -> Result<()> {
        let value = if has_none {
            self.of.each(&self.nothing, 0..1)?.next().transpose()?.flatten()
        } else {
            self.of.and(self.older.last().copied().flatten(), self.newer)?
        };
        self.done.push(value);
        Ok(())
    }

    fn taken(&mut self) -> Result<ArrayRef> {
        let done = std::mem::take(&mut self.done);
        self.of.fold.column(done)
    }
}

/// Which aggregate.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// `count`.
    Count,
    /// A sum of prices or sizes.
    Units(Of),
    /// `sum` or `avg` of a calculated number.
    Floats {
        /// Whether it is `avg`.
        is_mean: bool,
    },
    /// `min` or `max` of values of a type.
    Extreme(Extreme, DataType),
    /// `first` or `last` by time.
    Ordered(Which, DataType),
}

impl Kind {
    /// The aggregate of `arguments` where `condition` holds, both among the values of a batch; `nothing`: those of a row of nulls;
    /// `held`: its memory.
    pub(super) fn moving(
        &self,
        arguments: Range<usize>,
        condition: Option<usize>,
        nothing: &[ArrayRef],
        held: MemoryReservation,
    ) -> Box<dyn Moving> {
        let at = (arguments, condition, nothing, held);
        match self {
            Kind::Count => queue(Count, at),
            Kind::Units(of) => queue(Units(*of), at),
            Kind::Floats { is_mean } => queue(Floats { is_mean: *is_mean }, at),
            Kind::Extreme(which, of) => match of {
                DataType::Float64 => queue(Extremes::<Float64Type>::new(*which, of), at),
                DataType::UInt64 => queue(Extremes::<UInt64Type>::new(*which, of), at),
                DataType::Timestamp(..) => queue(Extremes::<TimestampNanosecondType>::new(*which, of), at),
                _ => queue(Extremes::<Int64Type>::new(*which, of), at),
            },
            Kind::Ordered(which, of) => match of {
                DataType::Float64 => queue(Ordered::<Float64Type>::new(*which, of), at),
                DataType::UInt64 => queue(Ordered::<UInt64Type>::new(*which, of), at),
                DataType::Timestamp(..) => queue(Ordered::<TimestampNanosecondType>::new(*which, of), at),
                _ => queue(Ordered::<Int64Type>::new(*which, of), at),
            },
        }
    }
}

fn queue<F: Fold + 'static>(
    fold: F,
    (arguments, condition, nothing, held): (Range<usize>, Option<usize>, &[ArrayRef], MemoryReservation),
) -> Box<dyn Moving> {
    Box::new(Queue {
        of: Folded { fold, arguments, condition },
        nothing: nothing.to_vec(),
        rows: 0..0,
        middle: 0,
        older: Vec::new(),
        newer: None,
        done: Vec::new(),
        held,
    })
}

/// The error of values that are not of the type that the plan says.
fn wrong() -> DataFusionError {
    DataFusionError::Internal("values of a window are not of the type that was planned".to_owned())
}

struct Count;

impl Fold for Count {
    type Value = i64;
    type Rows<'a> = ();

    fn rows<'a>(&self, _: &'a [ArrayRef]) -> Result<Self::Rows<'a>> {
        Ok(())
    }

    fn of((): &(), _: usize) -> Result<i64> {
        Ok(1)
    }

    fn and(&self, a: i64, b: i64) -> Result<i64> {
        Ok(a + b)
    }

    fn column(&self, windows: Vec<Option<i64>>) -> Result<ArrayRef> {
        Ok(Arc::new(windows.into_iter().map(Option::unwrap_or_default).collect::<Int64Array>()))
    }
}

struct Units(Of);

impl Fold for Units {
    /// The sum, and the weight.
    type Value = (i128, i128);
    type Rows<'a> = (Numbers<'a>, Option<Numbers<'a>>);

    fn rows<'a>(&self, arguments: &'a [ArrayRef]) -> Result<Self::Rows<'a>> {
        let value = arguments.first().ok_or_else(wrong)?;
        Ok((Numbers::of(value)?, arguments.get(1).map(Numbers::of).transpose()?))
    }

    fn of((value, weight): &Self::Rows<'_>, row: usize) -> Result<(i128, i128)> {
        let value = value.at(row)?;
        let Some(weight) = weight else { return Ok((value, 1)) };
        let weight = weight.at(row)?;
        Ok((value.checked_mul(weight).ok_or_else(too_large)?, weight))
    }

    fn and(&self, a: (i128, i128), b: (i128, i128)) -> Result<(i128, i128)> {
        let sum = |a: i128, b: i128| a.checked_add(b).ok_or_else(too_large);
        Ok((sum(a.0, b.0)?, sum(a.1, b.1)?))
    }

    fn column(&self, windows: Vec<Option<(i128, i128)>>) -> Result<ArrayRef> {
        let has: Vec<bool> = windows.iter().map(Option::is_some).collect();
        let (sums, weights): (Vec<i128>, Vec<i128>) = windows.into_iter().map(Option::unwrap_or_default).unzip();
        self.0.result(&sums, &weights, &has)
    }
}

struct Floats {
    is_mean: bool,
}

impl Fold for Floats {
    /// The sum, and the number of values.
    type Value = (f64, i64);
    type Rows<'a> = &'a [f64];

    fn rows<'a>(&self, arguments: &'a [ArrayRef]) -> Result<&'a [f64]> {
        values::<Float64Type>(arguments)
    }

    fn of(rows: &&[f64], row: usize) -> Result<(f64, i64)> {
        // A sum begins at zero, which makes a zero of a negative one.
        rows.get(row).map(|value| (0.0 + value, 1)).ok_or_else(wrong)
    }

    fn and(&self, a: (f64, i64), b: (f64, i64)) -> Result<(f64, i64)> {
        Ok((a.0 + b.0, a.1 + b.1))
    }

    fn column(&self, windows: Vec<Option<(f64, i64)>>) -> Result<ArrayRef> {
        let value = |(sum, count): (f64, i64)| if self.is_mean { sum / count as f64 } else { sum };
        Ok(Arc::new(windows.into_iter().map(|window| window.map(value)).collect::<Float64Array>()))
    }
}

/// Which value of a window is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Extreme {
    /// The least.
    Least,
    /// The greatest.
    Greatest,
}

struct Extremes<T> {
    which: Extreme,
    of: DataType,
    values: PhantomData<fn() -> T>,
}

impl<T> Extremes<T> {
    fn new(which: Extreme, of: &DataType) -> Extremes<T> {
        Extremes { which, of: of.clone(), values: PhantomData }
    }
}

impl<T: ArrowPrimitiveType> Fold for Extremes<T> {
    type Value = T::Native;
    type Rows<'a> = &'a [T::Native];

    fn rows<'a>(&self, arguments: &'a [ArrayRef]) -> Result<&'a [T::Native]> {
        values::<T>(arguments)
    }

    fn of(rows: &&[T::Native], row: usize) -> Result<T::Native> {
        rows.get(row).copied().ok_or_else(wrong)
    }

    fn and(&self, a: T::Native, b: T::Native) -> Result<T::Native> {
        // The order of values is total: a NaN is greater than every number, as in PostgreSQL. The planner's library has another rule
        // for NaN in groups, by which the result depends on the order of the rows.
        let (a_is_nan, b_is_nan) = (a.partial_cmp(&a).is_none(), b.partial_cmp(&b).is_none());
        let order = b.partial_cmp(&a).unwrap_or_else(|| b_is_nan.cmp(&a_is_nan));
        let wanted = match self.which {
            Extreme::Least => Ordering::Less,
            Extreme::Greatest => Ordering::Greater,
        };
        Ok(if order == wanted { b } else { a })
    }

    fn column(&self, windows: Vec<Option<T::Native>>) -> Result<ArrayRef> {
        Ok(Arc::new(windows.into_iter().collect::<PrimitiveArray<T>>().with_data_type(self.of.clone())))
    }
}

struct Ordered<T> {
    which: Which,
    of: DataType,
    values: PhantomData<fn() -> T>,
}

impl<T> Ordered<T> {
    fn new(which: Which, of: &DataType) -> Ordered<T> {
        Ordered { which, of: of.clone(), values: PhantomData }
    }
}

impl<T: ArrowPrimitiveType> Fold for Ordered<T> {
    /// `None`: the row's value is null.
    type Value = Option<T::Native>;
    type Rows<'a> = &'a PrimitiveArray<T>;
    const TAKES_NULLS: bool = true;

    fn rows<'a>(&self, arguments: &'a [ArrayRef]) -> Result<Self::Rows<'a>> {
        array(arguments)
    }

    fn of(rows: &Self::Rows<'_>, row: usize) -> Result<Self::Value> {
        Ok(rows.is_valid(row).then(|| rows.value(row)))
    }

    fn and(&self, a: Self::Value, b: Self::Value) -> Result<Self::Value> {
        Ok(match self.which {
            Which::First => a,
            Which::Last => b,
        })
    }

    fn column(&self, windows: Vec<Option<Self::Value>>) -> Result<ArrayRef> {
        let values: PrimitiveArray<T> = windows.into_iter().map(Option::flatten).collect();
        Ok(Arc::new(values.with_data_type(self.of.clone())))
    }
}

/// The first argument.
fn array<T: ArrowPrimitiveType>(arguments: &[ArrayRef]) -> Result<&PrimitiveArray<T>> {
    arguments.first().and_then(|array| array.as_primitive_opt::<T>()).ok_or_else(wrong)
}

/// The values of the first argument.
fn values<T: ArrowPrimitiveType>(arguments: &[ArrayRef]) -> Result<&[T::Native]> {
    array::<T>(arguments).map(|array| array.values().as_ref())
}

/// Prices or sizes.
#[derive(Clone, Copy, Debug)]
enum Numbers<'a> {
    /// Units of 1e-9.
    Prices(&'a [i64]),
    /// Units of 1e-9.
    Sizes(&'a [u64]),
    /// Calculated.
    Calculated(&'a [f64]),
}

impl<'a> Numbers<'a> {
    fn of(array: &'a ArrayRef) -> Result<Numbers<'a>> {
        let prices = array.as_primitive_opt::<Int64Type>().map(|array| Numbers::Prices(array.values()));
        let sizes = || array.as_primitive_opt::<UInt64Type>().map(|array| Numbers::Sizes(array.values()));
        let calculated = || array.as_primitive_opt::<Float64Type>().map(|array| Numbers::Calculated(array.values()));
        prices.or_else(sizes).or_else(calculated).ok_or_else(wrong)
    }

    /// The value of a row, units of 1e-9.
    fn at(&self, row: usize) -> Result<i128> {
        match self {
            Numbers::Prices(values) => values.get(row).map(|value| i128::from(*value)).ok_or_else(wrong),
            Numbers::Sizes(values) => values.get(row).map(|value| i128::from(*value)).ok_or_else(wrong),
            Numbers::Calculated(values) => scaled(values.get(row).copied().ok_or_else(wrong)?),
        }
    }
}
