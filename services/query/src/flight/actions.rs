//! Owns: the actions that set and get the options of a client's session.

use std::collections::HashMap;

use arrow_flight::Action;
use prost::Message;
use tonic::Status;

use super::session_options::{
    CLOSED, CloseSessionResult, GetSessionOptionsResult, INVALID_NAME, INVALID_VALUE, OptionError, OptionValue,
    SessionOptionValue, SetSessionOptionsRequest, SetSessionOptionsResult,
};
use super::status::wrong;
use crate::engine::Settings;
use crate::session::{SETTINGS, Session};

/// The names of the actions, and what they do.
pub const ALL: [(&str, &str); 3] = [
    ("SetSessionOptions", "Sets options of the session: at, as_known_at"),
    ("GetSessionOptions", "The options of the session"),
    ("CloseSession", "Sets the options of the session back"),
];

/// Runs `action` for `session`; returns the answer.
///
/// # Errors
/// There is no such action, or its body is no request.
pub fn run(action: &Action, session: &mut Session) -> Result<Vec<u8>, Status> {
    match action.r#type.as_str() {
        "SetSessionOptions" => {
            let request = SetSessionOptionsRequest::decode(&*action.body).map_err(|error| wrong(error.to_string()))?;
            let mut errors = HashMap::new();
            for (name, value) in request.session_options {
                if let Some(value) = refused(&name, value, session) {
                    errors.insert(name, OptionError { value });
                }
            }
            Ok(SetSessionOptionsResult { errors }.encode_to_vec())
        }
        "GetSessionOptions" => {
            let option = |name: &&str| {
                let value = session.value(name).map(OptionValue::Text);
                ((*name).to_owned(), SessionOptionValue { value })
            };
            let session_options = SETTINGS.iter().map(option).collect();
            Ok(GetSessionOptionsResult { session_options }.encode_to_vec())
        }
        "CloseSession" => {
            *session = Session::new(session.engine().clone(), Settings::default());
            Ok(CloseSessionResult { status: CLOSED }.encode_to_vec())
        }
        other => Err(wrong(format!("there is no action '{other}'"))),
    }
}

/// Sets the option `name`; returns why it cannot be.
fn refused(name: &str, value: SessionOptionValue, session: &mut Session) -> Option<i32> {
    let first = Session::new(session.engine().clone(), Settings::default());
    let Some(first) = first.value(name) else { return Some(INVALID_NAME) };
    let text = match value.value {
        Some(OptionValue::Text(text)) => text,
        // No value sets it back.
        None => first,
        Some(_) => return Some(INVALID_VALUE),
    };
    session.set(name, &text).err().map(|_| INVALID_VALUE)
}
