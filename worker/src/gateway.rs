//! The role that speaks HTTP: opens the model's header for its tokenizer, and runs dunlin-gateway.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use dunlin_gateway::template::{ChatTemplate, told};
use dunlin_gateway::{GatewayOptions, ModelText, ServedAdapter, serve};
use dunlin_model::ModelFile;
use dunlin_protocol::Windows;
use dunlin_wire::proto;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::certificates::credentials;
use crate::cli::GatewayArgs;
use crate::health;
use crate::model::{NamedAdapter, Problem, adapters, problem};

/// First and longest pause before the model is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Runs a gateway until SIGTERM.
///
/// # Errors
/// When the options cannot be used or an address cannot be bound.
#[expect(clippy::too_many_lines, reason = "wires a process from its options")]
pub async fn run(args: GatewayArgs) -> anyhow::Result<()> {
    let credentials = credentials(&args.process)?;
    let place = args.model.place()?;
    let name = args.model_name.clone().unwrap_or_else(|| place.name());
    let adapters = args.adapters.adapters;
    adapters::check(&adapters, Some(&name))?;
    let (model_in, model) = watch::channel(None);
    let (trouble_in, trouble) = watch::channel(None);
    let max_seq_len = args.max_seq_len;
    std::thread::Builder::new().name("model".to_owned()).spawn(move || {
        let mut pause = RETRY.0;
        loop {
            match place.open().and_then(|file| text(&file, &name, &adapters, max_seq_len)) {
                Ok(text) => {
                    // The receivers live as long as the process.
                    let _ = trouble_in.send(None);
                    let _ = model_in.send(Some(Arc::new(text)));
                    return;
                }
                Err(problem) => {
                    let problem =
                        proto::Problem { reason: problem.reason.to_owned(), message: problem.message };
                    trouble_in.send_if_modified(|told: &mut Option<proto::Problem>| {
                        let news = told.as_ref() != Some(&problem);
                        if news {
                            warn!(
                                reason = problem.reason,
                                message = problem.message,
                                "the model cannot be opened"
                            );
                            *told = Some(problem);
                        }
                        news
                    });
                }
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(RETRY.1);
        }
    })?;
    let http =
        TcpListener::bind(args.http).await.with_context(|| format!("cannot listen on {}", args.http))?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Two lives of one name never begin in the same nanosecond of the same process id.
    let incarnation = seconds.as_nanos() as u64 ^ u64::from(std::process::id()) << 48;
    let ready = Arc::new(std::sync::atomic::AtomicBool::new(false));
    health::serve(args.process.health, Arc::clone(&ready), String::new).await?;
    serve(GatewayOptions {
        name: args.process.name,
        incarnation,
        model_digest: args.model.model_digest,
        http,
        control: args.process.listen,
        credentials,
        topology: args.topology,
        model,
        trouble,
        ready,
        running_max: args.running_max,
        queue_max: args.queue_max,
        drain: Duration::from_secs(args.drain_s),
    })
    .await
}

fn text(
    file: &ModelFile,
    name: &str,
    adapters: &[NamedAdapter],
    max_seq_len: u32,
) -> Result<ModelText, Problem> {
    let tokenizer = file.tokenizer().map_err(|error| problem(&error))?;
    let invalid = |error| Problem {
        reason: "ModelInvalid",
        message: format!(
            "its chat template cannot be used: {}; mend the template, or take it out to serve completions only",
            told(&error)
        ),
    };
    let source = file.chat_template().map_err(|error| problem(&error))?;
    let template = source.map(|source| ChatTemplate::new(&source, tokenizer.names().clone()));
    let template = template.transpose().map_err(invalid)?;
    if template.is_none() {
        info!("the model has no chat template: it completes texts, and chats are refused");
    }
    let config = file.config();
    let vocab = config.vocab as u32;
    let served = |adapter: &NamedAdapter| {
        let rows = adapter.prompt_rows(config)? as u32;
        Ok(ServedAdapter { name: Arc::clone(&adapter.name), prompt: vocab..vocab + rows })
    };
    let adapters = adapters.iter().map(served).collect::<Result<_, _>>()?;
    let context = config.context_length;
    let max_len = if max_seq_len == 0 { context } else { max_seq_len.min(context) };
    let since_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let windows = Windows::new(config.windows());
    Ok(ModelText { name: name.to_owned(), adapters, tokenizer, template, vocab, max_len, windows, since_s })
}
