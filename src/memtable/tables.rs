//! Owns: the live MemTables of a store, as a reading process has them mapped.
//!
//! What must hold: a view covers every row up to its watermark. The list is read, what is new is
//! opened, the watermark is loaded, and the list is looked at once more: if it has not changed, the
//! tables hold everything up to the watermark, because storage names a table before a row in it is
//! applied.

use std::sync::Arc;

use super::Table;
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::shm::control::Control;
use crate::shm::run_dir::RunDir;

/// Tables as of one moment, oldest first, and the last row that may be looked at.
#[derive(Clone, Debug)]
pub struct View {
    /// The tables.
    pub tables: Vec<Arc<Table>>,
    /// The last row.
    pub upto: Lsn,
}

/// The mapped tables, kept from one view to the next.
#[derive(Debug, Default)]
pub struct Tables {
    instance: u64,
    version: u64,
    open: Vec<Arc<Table>>,
}

/// Looks at the list again this often before it gives up: storage changes it once a table is full.
const TRIES: u32 = 1000;

impl Tables {
    /// The tables now, up to what `watermark` gives.
    ///
    /// # Errors
    /// [`Error::StorageDown`] while storage recovers or after it has stopped for good.
    pub fn view(&mut self, run_dir: &RunDir, control: &Control, watermark: impl Fn(&Control) -> Lsn) -> Result<View> {
        let mut last = None;
        for _ in 0..TRIES {
            let instance = control.instance();
            if instance % 2 == 1 {
                return self.down(run_dir, "it is recovering");
            }
            let Some(list) = control.tables() else { return self.down(run_dir, "it was killed while it changed its MemTables") };
            if instance != self.instance || list.version != self.version {
                match self.refresh(run_dir, control.store_id(), instance, list.tables.get(..list.count).unwrap_or(&[])) {
                    Ok(()) => (self.instance, self.version) = (instance, list.version),
                    // Gone between the look at the list and the opening: look again.
                    Err(e) => {
                        last = Some(e);
                        continue;
                    }
                }
            }
            let upto = watermark(control);
            if control.table_version() == list.version && control.instance() == instance {
                return Ok(View { tables: self.open.clone(), upto });
            }
        }
        match last {
            Some(Error::Io { .. }) | None => self.down(run_dir, "its MemTables are gone"),
            Some(e) => Err(e),
        }
    }

    fn down<T>(&self, run_dir: &RunDir, why: &'static str) -> Result<T> {
        Err(Error::StorageDown { dir: run_dir.path().to_path_buf(), why })
    }

    fn refresh(&mut self, run_dir: &RunDir, store_id: u128, instance: u64, list: &[(u64, Lsn)]) -> Result<()> {
        let mut open = Vec::with_capacity(list.len());
        for &(id, base) in list {
            let known = self.open.iter().find(|t| self.instance == instance && t.id() == id);
            let table = match known {
                Some(table) => table.clone(),
                None => Arc::new(Table::open(&run_dir.memtable(instance, id), store_id)?),
            };
            debug_assert_eq!(table.base(), base);
            open.push(table);
        }
        self.open = open;
        Ok(())
    }
}
