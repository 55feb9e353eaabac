//! The command.

use std::path::PathBuf;

use anyhow::{Context, Result};
use dunlin_terminal::print::{note, plain};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::archive::{Entry, archive};
use super::collect::{objects, pods};
use super::redact::{lines, redact};
use crate::args::BundleArgs;
use crate::cluster::Cluster;
use crate::doctor::{diagnose, report};
use crate::evidence::{gather, surroundings};
use crate::status::ask::Looks;
use crate::status::render::render;
use crate::swarm::{AnySwarm, Chosen, chosen};

/// Writes the bundle, and says where it is and how large.
///
/// # Errors
/// When the swarms cannot be found, or the file not be written.
pub async fn write(args: &BundleArgs) -> Result<bool> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let Chosen { swarms, unread } = chosen(&cluster, args.name.as_deref()).await?;
    unread.iter().for_each(note);
    let now = Timestamp::now();
    let stem = format!(
        "dunlin-{}-{}",
        args.name.as_deref().map_or("all".into(), |name| name.replace('/', "-")),
        now.strftime("%Y%m%dT%H%M%SZ")
    );
    note("reading manifests, pods, Events, logs and metrics");
    let mut entries = look(&cluster, &swarms, now.as_second()).await;
    let mut namespaces: Vec<String> = swarms.iter().map(AnySwarm::namespace).collect();
    namespaces.sort();
    namespaces.dedup();
    for namespace in namespaces {
        let here = cluster.of(&namespace);
        let (objects, pods) = tokio::join!(objects(&here), pods(&here));
        let below = |(path, text): Entry| (format!("{namespace}/{path}"), text);
        entries.extend(objects.into_iter().chain(pods).map(below));
    }
    let path = args.file.clone().unwrap_or_else(|| PathBuf::from(format!("{stem}.tar.gz")));
    let seconds = u64::try_from(now.as_second()).unwrap_or(0);
    let bytes = archive(&path, &stem, &entries, seconds)
        .with_context(|| format!("cannot write {}: choose another with --file", path.display()))?;
    let result = json!({"file": path, "bytes": bytes, "files": entries.len()});
    let text = || format!("{}: {} files, {} KiB", path.display(), entries.len(), bytes.div_ceil(1024));
    args.output.print(&result, text)?;
    Ok(true)
}

/// What the doctor and the status say of each.
async fn look(cluster: &Cluster, swarms: &[AnySwarm], now_s: i64) -> Vec<Entry> {
    let around = surroundings(cluster, now_s).await;
    let (mut texts, mut views, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for swarm in swarms {
        let evidence = gather(cluster, swarm, &around, now_s).await;
        texts.push(report(&evidence, diagnose(&evidence)).text());
        all.push(evidence);
        let view = Looks::default().look(cluster, swarm, now_s).await;
        views.push(view.map_or_else(|why| why.to_string(), |view| render(&view)));
    }
    vec![
        // Messages of conditions and Events may have URLs in them.
        ("doctor.txt".into(), lines(&plain(&texts.join("\n\n")))),
        ("status.txt".into(), lines(&plain(&views.join("\n\n")))),
        ("evidence.json".into(), format!("{:#}", redact(&json!(all)))),
    ]
}
