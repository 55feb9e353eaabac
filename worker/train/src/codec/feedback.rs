//! Error feedback: what an encoding loses is added to what is encoded next.
//!
//! Without it the error of a lossy average adds up over the steps; with it the sum of all that was sent stays within one encoding's error
//! of the sum of all that was to be sent (Seide et al., "1-bit stochastic gradient descent", 2014).

use super::{Codec, CodecError};

/// What was lost, a number for each value that is sent again and again.
#[derive(Clone, Debug)]
pub struct ErrorFeedback {
    codec: Codec,
    residual: Vec<f32>,
}

impl ErrorFeedback {
    /// Nothing lost yet, for `length` values.
    #[must_use]
    pub fn new(codec: Codec, length: usize) -> Self {
        Self { codec, residual: vec![0.0; length] }
    }

    /// What is missing from what was sent so far.
    #[must_use]
    pub fn residual(&self) -> &[f32] {
        &self.residual
    }

    /// Encodes `values` and what was lost of those at the same places (`from` on) before, and keeps what is lost now. `values` becomes what
    /// every receiver decodes, so that the sender goes on with the same bits.
    ///
    /// # Errors
    /// When a value cannot be encoded or `from` and the length are not inside; nothing is lost or kept then.
    pub fn encode(&mut self, from: usize, values: &mut [f32], out: &mut Vec<u8>) -> Result<(), CodecError> {
        let length = self.residual.len();
        let Some(residual) = from.checked_add(values.len()).and_then(|end| self.residual.get_mut(from..end))
        else {
            let (found, expected) = (self.codec.bytes(values.len()), self.codec.bytes(length));
            return Err(CodecError::Length { codec: self.codec, found, expected, values: values.len() });
        };
        let wanted: Vec<f32> = values.iter().zip(residual.iter()).map(|(v, r)| v + r).collect();
        let start = out.len();
        let mut sent = Vec::new();
        let encoded = self.codec.encode(&wanted, out);
        if let Err(error) = encoded.and_then(|()| self.codec.decode(&out[start..], wanted.len(), &mut sent)) {
            out.truncate(start);
            return Err(error);
        }
        for ((residual, wanted), sent) in residual.iter_mut().zip(&wanted).zip(&sent) {
            *residual = wanted - sent;
        }
        values.copy_from_slice(&sent);
        Ok(())
    }
}
