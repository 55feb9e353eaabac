//! Asks a cluster.

use dunlin_worker::exit::NeedsUser;

/// The answer, from a runtime that lasts as long as the question. An error that stays is marked as one that a user must mend.
///
/// # Errors
/// Those of the question.
pub fn ask<T>(question: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(question);
    let stays = answer.as_ref().is_err_and(dunlin_kubectl::is_for_user);
    answer.needs_user_if(stays)
}
