//! Names in JSON: a string, or `{"base64":"..."}` for a name that is not UTF-8, in documents and in answers alike.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// A name as JSON spells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JsonPath(pub(crate) PathBuf);

impl JsonPath {
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        Self(PathBuf::from(OsString::from_vec(bytes.to_vec())))
    }
}

impl From<&Path> for JsonPath {
    fn from(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl Serialize for JsonPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Some(text) = self.0.to_str() {
            return serializer.serialize_str(text);
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("base64", &STANDARD.encode(self.0.as_os_str().as_bytes()))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for JsonPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PathVisitor)
    }
}

struct PathVisitor;

impl<'de> Visitor<'de> for PathVisitor {
    type Value = JsonPath;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"a path, as a string or as {"base64":"..."}"#)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<JsonPath, E> {
        Ok(JsonPath(text.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonPath, A::Error> {
        let Some("base64") = map.next_key::<std::borrow::Cow<'_, str>>()?.as_deref() else {
            return Err(A::Error::custom(r#"a path that is an object has the one field "base64""#));
        };
        let Base64(bytes) = map.next_value()?;
        if map.next_key::<serde::de::IgnoredAny>()?.is_some() {
            return Err(A::Error::custom(r#"a path that is an object has the one field "base64""#));
        }
        Ok(JsonPath::from_bytes(&bytes))
    }
}

/// Bytes in standard, padded base64.
#[derive(Debug)]
pub(crate) struct Base64(pub(crate) Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Base64Visitor;
        // Decoded from where it stands: contents can be large, and a copy of the text would be one too many.
        impl Visitor<'_> for Base64Visitor {
            type Value = Base64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("standard, padded base64")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Base64, E> {
                let decoded = STANDARD.decode(text);
                decoded
                    .map(Base64)
                    .map_err(|error| E::custom(format!("not standard, padded base64: {error}")))
            }
        }
        deserializer.deserialize_str(Base64Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_survives_the_way_out_and_back() {
        for (bytes, json) in [
            (b"a/b c".as_slice(), r#""a/b c""#),
            ("gr\u{fc}n".as_bytes(), "\"gr\u{fc}n\""),
            (b"a/\xff", r#"{"base64":"YS//"}"#),
            (b"\xff", r#"{"base64":"/w=="}"#),
        ] {
            let path = JsonPath::from_bytes(bytes);
            assert_eq!(serde_json::to_string(&path).unwrap(), json);
            assert_eq!(serde_json::from_str::<JsonPath>(json).unwrap(), path);
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        for json in [
            "1",
            "null",
            "[]",
            "{}",
            r#"{"base64":1}"#,
            r#"{"base64":"/w"}"#,
            r#"{"base64":"_w=="}"#,
            r#"{"base64":"/w==","text":"a"}"#,
            r#"{"base64":"/w==","base64":"/w=="}"#,
            r#"{"text":"a"}"#,
        ] {
            assert!(serde_json::from_str::<JsonPath>(json).is_err(), "{json}");
        }
    }
}
