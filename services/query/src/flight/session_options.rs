//! Owns: the messages by which clients set options of their session (Arrow's Flight.proto).

use std::collections::HashMap;

/// A value of an option.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionOptionValue {
    /// The value.
    #[prost(oneof = "OptionValue", tags = "1, 2, 3, 4")]
    pub value: Option<OptionValue>,
}

/// A value of an option, by its type.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum OptionValue {
    /// A text.
    #[prost(string, tag = "1")]
    Text(String),
    /// True or false.
    #[prost(bool, tag = "2")]
    Bool(bool),
    /// A whole number.
    #[prost(sfixed64, tag = "3")]
    Int(i64),
    /// A number.
    #[prost(double, tag = "4")]
    Double(f64),
}

/// Sets options.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetSessionOptionsRequest {
    /// The options by their names.
    #[prost(map = "string, message", tag = "1")]
    pub session_options: HashMap<String, SessionOptionValue>,
}

/// Why an option was not set.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OptionError {
    /// `INVALID_NAME` or `INVALID_VALUE`.
    #[prost(int32, tag = "1")]
    pub value: i32,
}

/// There is no such option.
pub const INVALID_NAME: i32 = 1;
/// The option has no such value.
pub const INVALID_VALUE: i32 = 2;

/// Which options were not set.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetSessionOptionsResult {
    /// The reasons by the names of the options.
    #[prost(map = "string, message", tag = "1")]
    pub errors: HashMap<String, OptionError>,
}

/// All options.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetSessionOptionsResult {
    /// The options by their names.
    #[prost(map = "string, message", tag = "1")]
    pub session_options: HashMap<String, SessionOptionValue>,
}

/// How a session ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CloseSessionResult {
    /// `CLOSED`.
    #[prost(int32, tag = "1")]
    pub status: i32,
}

/// The session has ended.
pub const CLOSED: i32 = 1;
