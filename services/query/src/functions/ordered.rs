//! Owns: `first` and `last`, as names: [`super::rewrite`] makes them ordered aggregates before a plan runs.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility};

/// The names.
pub const NAMES: [&str; 2] = ["first", "last"];

/// All aggregates of this file.
pub fn all() -> Vec<Arc<AggregateUDF>> {
    let signature = Signature::any(1, Volatility::Immutable);
    NAMES.iter().map(|name| Arc::new(AggregateUDF::from(Ordered { name, signature: signature.clone() }))).collect()
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Ordered {
    name: &'static str,
    signature: Signature,
}

impl AggregateUDFImpl for Ordered {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, args: &[DataType]) -> Result<DataType> {
        args.first().cloned().ok_or_else(|| DataFusionError::Plan(format!("{} needs a column", self.name)))
    }

    fn accumulator(&self, _: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        let name = self.name;
        let sql = format!("write {name}_value(x ORDER BY y)");
        Err(DataFusionError::Plan(format!("{name}(x) needs the column time beside x, by which rows are ordered; {sql}")))
    }
}
