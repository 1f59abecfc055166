//! Owns: the pages of the documentation, which stand in `src/docs`; their programs are compiled as tests.

#[doc = include_str!("docs/cli.md")]
pub mod cli {}
#[doc = include_str!("docs/commands.md")]
pub mod commands {}
#[doc = include_str!("docs/sql.md")]
pub mod sql {}
#[doc = include_str!("docs/three-users.md")]
pub mod three_users {}
#[doc = include_str!("docs/formats.md")]
pub mod formats {}
#[doc = include_str!("docs/c.md")]
pub mod c {}
#[doc = include_str!("docs/install.md")]
pub mod install {}
#[doc = include_str!("docs/operations.md")]
pub mod operations {}
#[doc = include_str!("docs/events.md")]
pub mod events {}
#[doc = include_str!("docs/capacity.md")]
pub mod capacity {}
#[doc = include_str!("docs/metrics.md")]
pub mod metrics {}
#[doc = include_str!("docs/runbooks.md")]
pub mod runbooks {}
#[doc = include_str!("docs/cluster.md")]
pub mod cluster {}
#[doc = include_str!("docs/time-prices-nulls.md")]
pub mod time_prices_nulls {}
#[doc = include_str!("docs/durability.md")]
pub mod durability {}
#[doc = include_str!("docs/file-formats.md")]
pub mod file_formats {}
#[doc = include_str!("docs/contributing.md")]
pub mod contributing {}
#[doc = include_str!("../README.md")]
pub mod readme {}
