//! What a leader holds for a swarm in order to write: certificates, and what it has written. No decision sees it.

use crate::apply::{Applied, Applier};
use crate::error::Error;
use crate::labels::Owner;
use crate::making::Making;
use crate::trust::Trust;

/// Resources of one swarm. `Own`: those of its kind alone.
#[derive(Default)]
pub struct Resources<Own> {
    /// Certificates, once the authority is there.
    pub trust: Option<Trust>,
    /// The Secret with the authority is as it was.
    pub kept: bool,
    /// Objects written.
    pub applied: Applied,
    /// Pods in the making.
    pub making: Making,
    /// What only this kind of swarm has.
    pub own: Own,
}

impl<Own> Resources<Own> {
    /// The authority: the one we know, put back if somebody has touched it, or the one that an earlier leader left, or a new one.
    ///
    /// # Errors
    /// The API server's refusal, the last one as long as it rests.
    pub async fn trust(&mut self, owner: &Owner, applier: &Applier) -> Result<Trust, Error> {
        let mut trust = match &self.trust {
            Some(trust) => {
                if !self.kept {
                    trust.keep(owner, applier, &mut self.applied).await?;
                }
                trust.clone()
            }
            None => Trust::restore(owner, applier, &mut self.applied).await?,
        };
        self.kept = true;
        trust.renew_own(owner)?;
        Ok(self.trust.insert(trust).clone())
    }
}
