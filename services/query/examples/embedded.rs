//! Answers SQL in this process: `cargo run --release -p tape-query --example embedded -- STORE`, then a statement a line.
//!
//! Prints the number of rows of each answer and the milliseconds until the last one was there, as Arrow arrays.

use std::io::BufRead;
use std::path::PathBuf;
use std::time::Instant;

use futures::TryStreamExt;
use tape_query::engine::{Engine, Options, Settings};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = std::env::args_os().nth(1).map(PathBuf::from).ok_or("which store? embedded STORE")?;
    let engine = Engine::open(&store, Options::default())?;
    let runtime = tokio::runtime::Runtime::new()?;
    for line in std::io::stdin().lock().lines() {
        let sql = line?;
        let began = Instant::now();
        let batches: Result<Vec<_>, Box<dyn std::error::Error>> = runtime.block_on(async {
            let answer = engine.query(&sql, &Settings::default()).await?;
            Ok(answer.rows.try_collect().await?)
        });
        let took = began.elapsed().as_secs_f64() * 1e3;
        match batches {
            Ok(batches) => {
                let rows: usize = batches.iter().map(arrow::array::RecordBatch::num_rows).sum();
                println!("{rows} {took:.3}");
            }
            Err(error) => println!("error {error}"),
        }
    }
    Ok(())
}
