//! Owns: aggregates of a window that moves over rows: each row is added once and left out once, however many windows it is in.
//!
//! The rows of a window are in two parts. Of the older part it is known what the rows from each one to its end are together; of the
//! newer part, what all are together. When the older part has no rows any more, the newer one becomes it. Nothing is subtracted: no
//! rounding, infinity or NaN stays of a row that left (Tangwongsan, Hirzel and Schneider, "Low-latency sliding-window aggregation in
//! worst-case constant time", 2017, section 2: the two-stacks algorithm).
//!
//! What must hold: windows begin and end in order: none begins or ends before the one before it.

use std::cmp::Ordering;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, Float64Array, Int64Array, PrimitiveArray};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampNanosecondType, UInt64Type};
use datafusion::error::Result;

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
    fn rows<'a>(&self, arguments: &'a [ArrayRef]) -> Self::Rows<'a>;

    /// What row `row` is; its arguments are not null, unless [`Fold::TAKES_NULLS`].
    fn of(rows: &Self::Rows<'_>, row: usize) -> Result<Self::Value>;

    /// What `a` and the later `b` are together.
    fn and(&self, a: Self::Value, b: Self::Value) -> Result<Self::Value>;

    /// The aggregates of windows; `None`: the window has no row that counts.
    fn column(&self, windows: Vec<Option<Self::Value>>) -> Result<ArrayRef>;

    /// Whether a row with a null counts.
    const TAKES_NULLS: bool = false;
}

/// An aggregate of the windows of left rows.
pub(super) trait Moving: Send {
    /// Begins the rows of another key.
    fn begin(&mut self);

    /// Goes on to the window of the rows with these numbers.
    ///
    /// # Errors
    /// The aggregate cannot be calculated.
    fn go(&mut self, rights: &Rights, rows: Range<usize>) -> Result<()>;

    /// Adds the value of a left row without right rows.
    fn skip(&mut self);

    /// The values of the left rows since the last call.
    ///
    /// # Errors
    /// As [`Moving::go`].
    fn taken(&mut self) -> Result<ArrayRef>;

    /// Bytes on the heap.
    fn size(&self) -> usize;
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
    ) -> impl DoubleEndedIterator<Item = Result<Option<F::Value>>> + 'a {
        let arguments = values.get(self.arguments.clone()).unwrap_or(&[]);
        let condition = self.condition.and_then(|at| values.get(at)).map(|array| array.as_boolean());
        let nulls: Vec<_> = arguments.iter().filter_map(|array| array.nulls()).filter(|_| !F::TAKES_NULLS).collect();
        let folded = self.fold.rows(arguments);
        rows.map(move |row| {
            let counts = nulls.iter().all(|nulls| nulls.is_valid(row))
                && condition.is_none_or(|condition| condition.is_valid(row) && condition.value(row));
            counts.then(|| F::of(&folded, row)).transpose()
        })
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
    /// What the aggregate is of a row of nulls.
    nothing: Option<F::Value>,
    /// The rows of the window. `older` has what those before `middle` are together, from each one on, the last first; `newer` what
    /// the others are.
    rows: Range<usize>,
    middle: usize,
    older: Vec<Option<F::Value>>,
    newer: Option<F::Value>,
    done: Vec<Option<F::Value>>,
}

impl<F: Fold> Queue<F> {
    /// Leaves out the rows before `first`.
    fn leave(&mut self, rights: &Rights, first: usize) -> Result<()> {
        if first < self.middle {
            self.older.truncate(self.middle - first);
        } else {
            self.older.clear();
            let mut together = None;
            for (read, rows) in rights.batches(first..self.rows.end).rev() {
                for value in self.of.each(&read.values, rows).rev() {
                    together = self.of.and(value?, together)?;
                    self.older.push(together);
                }
            }
            (self.middle, self.newer) = (self.rows.end, None);
        }
        self.rows.start = first;
        Ok(())
    }
}

impl<F: Fold> Moving for Queue<F> {
    fn begin(&mut self) {
        self.older.clear();
        (self.rows, self.middle, self.newer) = (0..0, 0, None);
    }

    fn go(&mut self, rights: &Rights, rows: Range<usize>) -> Result<()> {
        if rows.is_empty() {
            self.skip();
            return Ok(());
        }
        if rows.start >= self.rows.end {
            self.older.clear();
            (self.rows, self.middle, self.newer) = (rows.start..rows.start, rows.start, None);
        } else if rows.start > self.rows.start {
            self.leave(rights, rows.start)?;
        }
        for (read, rows) in rights.batches(self.rows.end..rows.end) {
            for value in self.of.each(&read.values, rows) {
                self.newer = self.of.and(self.newer, value?)?;
            }
        }
        self.rows.end = rows.end;
        let older = self.older.last().copied().flatten();
        self.done.push(self.of.and(older, self.newer)?);
        Ok(())
    }

    fn skip(&mut self) {
        self.done.push(self.nothing);
    }

    fn taken(&mut self) -> Result<ArrayRef> {
        let done = std::mem::take(&mut self.done);
        self.of.fold.column(done)
    }

    fn size(&self) -> usize {
        (self.older.capacity() + self.done.capacity()) * size_of::<Option<F::Value>>()
    }
}

/// Which aggregate.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// The aggregate of `arguments` where `condition` holds, both among the values of a batch; `nothing`: those of a row of nulls.
    ///
    /// # Errors
    /// It is none of these values.
    pub(super) fn moving(
        &self,
        arguments: Range<usize>,
        condition: Option<usize>,
        nothing: &[ArrayRef],
    ) -> Result<Box<dyn Moving>> {
        let at = (arguments, condition, nothing);
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
    (arguments, condition, nothing): (Range<usize>, Option<usize>, &[ArrayRef]),
) -> Result<Box<dyn Moving>> {
    let of = Folded { fold, arguments, condition };
    let nothing = of.each(nothing, 0..1).next().transpose()?.flatten();
    Ok(Box::new(Queue { of, nothing, rows: 0..0, middle: 0, older: Vec::new(), newer: None, done: Vec::new() }))
}

struct Count;

impl Fold for Count {
    type Value = i64;
    type Rows<'a> = ();

    fn rows<'a>(&self, _: &'a [ArrayRef]) -> Self::Rows<'a> {}

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

    fn rows<'a>(&self, arguments: &'a [ArrayRef]) -> Self::Rows<'a> {
        (Numbers::of(arguments.first()).unwrap_or(Numbers::Prices(&[])), Numbers::of(arguments.get(1)))
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

    fn rows<'a>(&self, arguments: &'a [ArrayRef]) -> &'a [f64] {
        values::<Float64Type>(arguments)
    }

    fn of(rows: &&[f64], row: usize) -> Result<(f64, i64)> {
        Ok((rows.get(row).copied().unwrap_or_default(), 1))
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl<T: ArrowPrimitiveType<Native: PartialOrd>> Fold for Extremes<T> {
    type Value = T::Native;
    type Rows<'a> = &'a [T::Native];

    fn rows<'a>(&self, arguments: &'a [ArrayRef]) -> &'a [T::Native] {
        values::<T>(arguments)
    }

    fn of(rows: &&[T::Native], row: usize) -> Result<T::Native> {
        Ok(rows.get(row).copied().unwrap_or_default())
    }

    fn and(&self, a: T::Native, b: T::Native) -> Result<T::Native> {
        // As the planner's library has it: a value that cannot be compared (NaN) takes the place of the one before.
        let wanted = match self.which {
            Extreme::Least => Ordering::Less,
            Extreme::Greatest => Ordering::Greater,
        };
        Ok(if b.partial_cmp(&a).is_none_or(|order| order == wanted) { b } else { a })
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
    type Rows<'a> = Option<&'a PrimitiveArray<T>>;
    const TAKES_NULLS: bool = true;

    fn rows<'a>(&self, arguments: &'a [ArrayRef]) -> Self::Rows<'a> {
        arguments.first().and_then(|array| array.as_primitive_opt::<T>())
    }

    fn of(rows: &Self::Rows<'_>, row: usize) -> Result<Self::Value> {
        Ok(rows.filter(|rows| rows.is_valid(row)).map(|rows| rows.value(row)))
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

/// The values of the first argument.
fn values<T: ArrowPrimitiveType>(arguments: &[ArrayRef]) -> &[T::Native] {
    arguments.first().and_then(|array| array.as_primitive_opt::<T>()).map_or(&[], |array| array.values())
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
    fn of(array: Option<&'a ArrayRef>) -> Option<Numbers<'a>> {
        let array = array?;
        let prices = array.as_primitive_opt::<Int64Type>().map(|array| Numbers::Prices(array.values()));
        let sizes = || array.as_primitive_opt::<UInt64Type>().map(|array| Numbers::Sizes(array.values()));
        let calculated = || array.as_primitive_opt::<Float64Type>().map(|array| Numbers::Calculated(array.values()));
        prices.or_else(sizes).or_else(calculated)
    }

    /// The value of a row, units of 1e-9.
    fn at(&self, row: usize) -> Result<i128> {
        Ok(match self {
            Numbers::Prices(values) => i128::from(values.get(row).copied().unwrap_or_default()),
            Numbers::Sizes(values) => i128::from(values.get(row).copied().unwrap_or_default()),
            Numbers::Calculated(values) => scaled(values.get(row).copied().unwrap_or_default())?,
        })
    }
}
