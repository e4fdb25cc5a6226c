//! Who may send.

use std::str::FromStr;

use crate::secret::Secret;

/// The credentials that a sender may present; any one of them suffices.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Bearer tokens.
    pub tokens: Vec<Token>,
    /// Standard Webhooks signing secrets.
    pub signing_secrets: Vec<SigningSecret>,
}

/// A bearer token of at least 16 characters.
#[derive(Clone, Debug)]
pub struct Token(Secret);

/// The key of a Standard Webhooks signature: at least 24 bytes, in base64, with or without `whsec_` before it.
#[derive(Clone, Debug)]
pub struct SigningSecret(Secret);

impl FromStr for Token {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.chars().count() < 16 {
            return Err("a token of at least 16 characters");
        }
        Ok(Self(Secret::new(text)))
    }
}

impl FromStr for SigningSecret {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(Secret::new(text)))
    }
}
