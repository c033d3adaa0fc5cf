//! How values stand in columns: token ids and log-probs as little-endian blobs, structures as JSON,
//! enums as their serde names. Reading is total: what does not decode is an error of that query.
//! Used by the rest of this folder.

use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::Serialize;
use serde::de::DeserializeOwned;

use inference::Token;

/// Unix milliseconds.
pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// SQLite's limit for a Rust one.
pub(super) fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// A number of things; SQLite's integers have a sign.
#[derive(Debug)]
pub(super) struct Count<T>(pub(super) T);

impl<T: TryFrom<i64>> FromSql for Count<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let number = value.as_i64()?;
        T::try_from(number).map(Self).map_err(|_| FromSqlError::OutOfRange(number))
    }
}

/// A structure as JSON text.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> ToSql for Json<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        serde_json::to_string(&self.0).map(ToSqlOutput::from).map_err(unwritable)
    }
}

impl<T: DeserializeOwned> FromSql for Json<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        serde_json::from_str(value.as_str()?).map(Self).map_err(FromSqlError::other)
    }
}

/// Whatever serde writes as a single text (an enum without fields, a path), without quotes.
#[derive(Debug)]
pub(super) struct Word<T>(pub(super) T);

impl<T: Serialize> ToSql for Word<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match serde_json::to_value(&self.0) {
            Ok(serde_json::Value::String(text)) => Ok(text.into()),
            Ok(_) => Err(unwritable("not a single text")),
            Err(error) => Err(unwritable(error)),
        }
    }
}

impl<T: DeserializeOwned> FromSql for Word<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let text = serde_json::Value::String(value.as_str()?.to_owned());
        serde_json::from_value(text).map(Self).map_err(FromSqlError::other)
    }
}

fn unwritable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(error.into())
}

/// Token ids as a blob.
#[derive(Debug)]
pub(super) struct Tokens<T>(pub(super) T);

impl ToSql for Tokens<&[Token]> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.iter().flat_map(|token| token.0.to_le_bytes()).collect::<Vec<u8>>().into())
    }
}

impl FromSql for Tokens<Vec<Token>> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let words = words(value)?;
        Ok(Self(words.map(|word| Token(i32::from_le_bytes(word))).collect()))
    }
}

/// Log-probs as a blob.
#[derive(Debug)]
pub(super) struct Logprobs<T>(pub(super) T);

impl ToSql for Logprobs<&[f32]> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into())
    }
}

impl FromSql for Logprobs<Vec<f32>> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(Self(words(value)?.map(f32::from_le_bytes).collect()))
    }
}

fn words(value: ValueRef<'_>) -> FromSqlResult<impl Iterator<Item = [u8; 4]>> {
    let (words, rest) = value.as_blob()?.as_chunks::<4>();
    if !rest.is_empty() {
        let (expected_size, blob_size) = (4 * words.len(), 4 * words.len() + rest.len());
        return Err(FromSqlError::InvalidBlobSize { expected_size, blob_size });
    }
    Ok(words.iter().copied())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blob(output: &ToSqlOutput<'_>) -> Vec<u8> {
        match output {
            ToSqlOutput::Owned(rusqlite::types::Value::Blob(bytes)) => bytes.clone(),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn any_tokens_come_back(ids in prop::collection::vec(any::<i32>(), 0..50)) {
            let tokens: Vec<_> = ids.into_iter().map(Token).collect();
            let bytes = blob(&Tokens(tokens.as_slice()).to_sql().unwrap());
            let back = Tokens::<Vec<Token>>::column_result(ValueRef::Blob(&bytes)).unwrap().0;
            prop_assert_eq!(back, tokens);
        }

        #[test]
        fn any_logprobs_come_back_bit_for_bit(bits in prop::collection::vec(any::<u32>(), 0..50)) {
            let values: Vec<_> = bits.iter().copied().map(f32::from_bits).collect();
            let bytes = blob(&Logprobs(values.as_slice()).to_sql().unwrap());
            let back = Logprobs::<Vec<f32>>::column_result(ValueRef::Blob(&bytes)).unwrap().0;
            prop_assert_eq!(back.into_iter().map(f32::to_bits).collect::<Vec<_>>(), bits);
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..50)) {
            let decoded = Tokens::<Vec<Token>>::column_result(ValueRef::Blob(&bytes));
            prop_assert_eq!(decoded.is_ok(), bytes.len() % 4 == 0);
            drop(Json::<Vec<i32>>::column_result(ValueRef::Text(&bytes)));
            drop(Word::<super::super::RunState>::column_result(ValueRef::Text(&bytes)));
        }
    }
}
