//! Arguments of the form NAME=VALUE.
//!
//! Knows the sign between them. Does not know what is named.

use std::str::FromStr;

use crate::fail::{Failure, Result, failure};

/// `NAME=VALUE`.
#[derive(Debug, Clone)]
pub(super) struct Named<T> {
    pub(super) name: String,
    pub(super) value: T,
}

impl<T: FromStr> FromStr for Named<T> {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Named<T>> {
        let bad =
            || failure!("{text:?} is not of the form NAME=VALUE: write for example goldrush=iscsi://...");
        let (name, value) = text.split_once('=').ok_or_else(bad)?;
        Ok(Named { name: name.to_string(), value: value.parse().map_err(|_| bad())? })
    }
}
