//! What is said first, by what is known.

use super::*;
use crate::evidence::facts::ConditionFacts;
use crate::evidence::{
    ClaimFacts, ClusterEvidence, EventFacts, GatewayFacts, LeaseFacts, NodeFacts, OperatorFacts, QuotaFacts,
    SwarmFacts,
};
use crate::pods::{Ended, PodFacts};

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> ConditionFacts {
    ConditionFacts {
        kind: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        since_s: 60,
    }
}

/// A swarm that waits for peers, in a cluster where all else is well.
fn waiting() -> ClusterEvidence {
    ClusterEvidence {
        swarm: SwarmFacts {
            id: "inferenceswarm/m".into(),
            name: "m".into(),
            namespace: "default".into(),
            generation: 1,
            observed: Some(1),
            age_s: 100,
            suspended: false,
            conditions: vec![
                condition("Ready", "False", "WaitingForPeers", "0 of 3 peers ready"),
                condition("Stalled", "False", "NotStalled", "nothing needs mending"),
            ],
        },
        operator: OperatorFacts {
            pods: Some(vec![PodFacts {
                name: "dunlin-operator-a".into(),
                ready: true,
                phase: "Running".into(),
                ..PodFacts::default()
            }]),
            namespace: "dunlin-system".into(),
            watches: None,
            lease: Some(LeaseFacts { holder: "dunlin-operator-a".into(), renewed_s: 2, lasts_s: 15 }),
        },
        nodes: Some(
            ["n1", "n2"].map(|n| NodeFacts { name: n.into(), ready: true, ..NodeFacts::default() }).to_vec(),
        ),
        ..ClusterEvidence::default()
    }
}

fn stalled(reason: &str, message: &str) -> ClusterEvidence {
    let mut evidence = waiting();
    evidence.swarm.conditions =
        vec![condition("Ready", "False", reason, message), condition("Stalled", "True", reason, message)];
    evidence
}

fn ready() -> ClusterEvidence {
    let mut evidence = waiting();
    evidence.swarm.conditions = vec![condition("Ready", "True", "Serving", "all 30 layers are served")];
    evidence
}

fn peer() -> PodFacts {
    PodFacts {
        name: "m-spot-a".into(),
        role: "stage".into(),
        pool: "spot".into(),
        node: "n1".into(),
        phase: "Running".into(),
        age_s: 90,
        requests: "cpu 2, memory 4Gi".into(),
        ..PodFacts::default()
    }
}

fn unplaced(said: &str, misfits: &[(&str, &str)]) -> ClusterEvidence {
    let pod = PodFacts {
        node: String::new(),
        phase: "Pending".into(),
        unschedulable: Some(said.into()),
        misfits: misfits.iter().map(|(node, why)| ((*node).into(), (*why).into())).collect(),
        ..peer()
    };
    with_pod(pod)
}

fn with_pod(pod: PodFacts) -> ClusterEvidence {
    ClusterEvidence { pods: vec![pod], ..waiting() }
}

fn with_event(evidence: ClusterEvidence, about: &str, reason: &str, message: &str) -> ClusterEvidence {
    let event = EventFacts {
        about: about.into(),
        reason: reason.into(),
        message: message.into(),
        count: 3,
        ago_s: 5,
    };
    ClusterEvidence { events: vec![event], ..evidence }
}

fn ends(reason: &str, code: i32, words: &str) -> ClusterEvidence {
    with_pod(PodFacts {
        ended: Some(Ended { reason: reason.into(), code, words: words.into() }),
        restarts: 4,
        ..peer()
    })
}

fn waits(reason: &str, message: &str) -> PodFacts {
    PodFacts { phase: "Pending".into(), waiting: Some((reason.into(), message.into())), ..peer() }
}

/// Evidence, and the headline that it makes.
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn cases() -> Vec<(ClusterEvidence, &'static str)> {
    let operator = |pods| ClusterEvidence {
        operator: OperatorFacts { pods: Some(pods), ..waiting().operator },
        ..waiting()
    };
    let quota = ClusterEvidence {
        quotas: vec![QuotaFacts {
            name: "pods".into(),
            resource: "pods".into(),
            used: "1".into(),
            hard: "1".into(),
        }],
        ..stalled(
            "PodRefused",
            "pods \"m-spot-b\" is forbidden: exceeded quota: pods, requested: pods=1, used: pods=1, limited: pods=1",
        )
    };
    vec![
        (ready(), "inferenceswarm/m in default is Ready: all 30 layers are served"),
        // Who may not see the operator is not told that there is none.
        (
            ClusterEvidence { operator: OperatorFacts::default(), ..waiting() },
            "inferenceswarm/m in default is not Ready: 0 of 3 peers ready",
        ),
        (
            operator(vec![]),
            "inferenceswarm/m in default is not Ready: no operator runs in this cluster: nobody carries the manifest out or replaces lost peers",
        ),
        (
            operator(vec![PodFacts {
                name: "dunlin-operator-a".into(),
                phase: "Running".into(),
                ..PodFacts::default()
            }]),
            "inferenceswarm/m in default is not Ready: no operator is ready in namespace dunlin-system: nobody carries the manifest out",
        ),
        (
            ClusterEvidence {
                operator: OperatorFacts {
                    lease: Some(LeaseFacts { holder: "x".into(), renewed_s: 400, lasts_s: 15 }),
                    ..waiting().operator
                },
                ..waiting()
            },
            "inferenceswarm/m in default is not Ready: no operator leads: nobody carries the manifest out",
        ),
        (
            ClusterEvidence {
                operator: OperatorFacts { watches: Some("dunlin-system".into()), ..waiting().operator },
                ..waiting()
            },
            "inferenceswarm/m in default is not Ready: the operator in dunlin-system looks only at namespace dunlin-system, and the swarm is in default",
        ),
        (
            ClusterEvidence {
                swarm: SwarmFacts { observed: Some(-1), conditions: vec![], ..waiting().swarm },
                ..waiting()
            },
            "inferenceswarm/m in default is not Ready: no operator has looked at the swarm since it was made 100 s ago",
        ),
        (
            stalled("ModelUnreachable", "http://models/m.gguf: HTTP 404"),
            "inferenceswarm/m in default is not Ready: http://models/m.gguf: HTTP 404",
        ),
        (
            quota,
            "inferenceswarm/m in default is not Ready: quota pods of namespace default leaves no room for another pod: requested: pods=1, used: pods=1, limited: pods=1",
        ),
        (
            with_event(
                waiting(),
                "ReplicaSet m-gateway-1",
                "FailedCreate",
                "Error creating: admission webhook \"policy.example\" denied the request: no root",
            ),
            "inferenceswarm/m in default is not Ready: admission webhook \"policy.example\" does not take the swarm's pods: no root",
        ),
        (
            with_event(
                waiting(),
                "InferenceSwarm m",
                "PodRefused",
                "pods \"a\" is forbidden: violates PodSecurity \"restricted:latest\": x",
            ),
            "inferenceswarm/m in default is not Ready: Pod Security of namespace default does not take the swarm's pods: \"restricted:latest\": x",
        ),
        (
            unplaced(
                "0/2 nodes are available",
                &[("n1", "it is not labelled disk=ssd"), ("n2", "it is not labelled disk=ssd")],
            ),
            "inferenceswarm/m in default is not Ready: no node matches pool spot: none of the 2 nodes is labelled disk=ssd",
        ),
        (
            unplaced(
                "0/2 nodes are available",
                &[("n1", "it is cordoned"), ("n2", "its taint gpu is not tolerated")],
            ),
            "inferenceswarm/m in default is not Ready: no node matches pool spot: of 1 node, it is cordoned; of 1 node, its taint gpu is not tolerated",
        ),
        (
            unplaced(
                "0/2 nodes are available: 2 Insufficient memory. preemption: 0/2 nodes are available: 2 No preemption victims found.",
                &[],
            ),
            "inferenceswarm/m in default is not Ready: no node has room for a peer of pool spot, which requests cpu 2, memory 4Gi: too little memory on 2 of 2 nodes",
        ),
        (
            unplaced("0/2 nodes are available: persistentvolumeclaim \"models\" not found.", &[]),
            "inferenceswarm/m in default is not Ready: a peer of pool spot waits for its volume: 0/2 nodes are available: persistentvolumeclaim \"models\" not found.",
        ),
        (
            ClusterEvidence {
                claims: vec![ClaimFacts { name: "models".into(), ..ClaimFacts::default() }],
                ..waiting()
            },
            "inferenceswarm/m in default is not Ready: the manifest names claim models, and there is none in namespace default",
        ),
        (
            ClusterEvidence { secrets_missing: vec!["keys".into()], ..waiting() },
            "inferenceswarm/m in default is not Ready: Secret keys is not there: pods that need it do not start",
        ),
        (
            with_event(
                with_pod(waits("ImagePullBackOff", "Back-off pulling image")),
                "Pod m-spot-a",
                "Failed",
                "Failed to pull image \"r/dunlin-worker:x\": not found",
            ),
            "inferenceswarm/m in default is not Ready: a peer of pool spot gets no image: Failed to pull image \"r/dunlin-worker:x\": not found",
        ),
        (
            ends("OOMKilled", 137, ""),
            "inferenceswarm/m in default is not Ready: a peer of pool spot was killed because it needed more memory than its limit (OOMKilled)",
        ),
        (
            ends("Error", 1, "cannot bind port 7070"),
            "inferenceswarm/m in default is not Ready: a peer of pool spot ends with an error: cannot bind port 7070",
        ),
        (
            ends("Error", 137, ""),
            "inferenceswarm/m in default is not Ready: a peer of pool spot was ended by signal 9",
        ),
        (
            with_pod(PodFacts {
                phase: "Failed".into(),
                end: Some(("Evicted".into(), "low on memory".into())),
                ..peer()
            }),
            "inferenceswarm/m in default is not Ready: the kubelet of n1 evicted a peer of pool spot: low on memory",
        ),
        (
            with_event(
                with_pod(waits("ContainerCreating", "")),
                "Pod m-spot-a",
                "FailedMount",
                "secret \"m-spot-a-tls\" not found",
            ),
            "inferenceswarm/m in default is not Ready: a peer of pool spot cannot mount a volume: secret \"m-spot-a-tls\" not found",
        ),
        (
            with_event(
                with_pod(waits("ContainerCreating", "")),
                "Pod m-spot-a",
                "FailedCreatePodSandBox",
                "no addresses left",
            ),
            "inferenceswarm/m in default is not Ready: node n1 gives pods no network: no addresses left",
        ),
        (
            ClusterEvidence {
                nodes: Some(vec![NodeFacts {
                    name: "n1".into(),
                    message: "Kubelet stopped posting node status.".into(),
                    ..NodeFacts::default()
                }]),
                ..with_pod(peer())
            },
            "inferenceswarm/m in default is not Ready: node n1 is not ready: Kubelet stopped posting node status.",
        ),
        (
            ClusterEvidence {
                gateways: vec![GatewayFacts {
                    pod: "m-gateway-1".into(),
                    unreached: vec!["m-spot-a".into()],
                    ..GatewayFacts::default()
                }],
                ..with_pod(PodFacts { ready: true, ..peer() })
            },
            "inferenceswarm/m in default is not Ready: peer m-spot-a is ready, and m-gateway-1 cannot reach it",
        ),
        (
            with_pod(peer()),
            "inferenceswarm/m in default is not Ready: 1 peer not ready yet, for 90 s: layers are being read",
        ),
        (waiting(), "inferenceswarm/m in default is not Ready: 0 of 3 peers ready"),
        (
            ClusterEvidence { swarm: SwarmFacts { suspended: true, ..ready().swarm }, ..ready() },
            "inferenceswarm/m in default is Ready: all 30 layers are served",
        ),
        (
            ClusterEvidence { schema_lacks: vec!["spec.gateway".into()], ..ready() },
            "inferenceswarm/m in default is Ready; the CustomResourceDefinition is of an older version: it lacks spec.gateway",
        ),
        (
            ClusterEvidence {
                operator: OperatorFacts { pods: Some(vec![]), ..waiting().operator },
                ..ready()
            },
            "inferenceswarm/m in default is Ready, but no operator runs in this cluster: nobody carries the manifest out or replaces lost peers",
        ),
    ]
}

#[test]
fn the_first_line_says_why() {
    for (evidence, expected) in cases() {
        let report = report(&evidence, diagnose(&evidence));
        assert_eq!(report.headline, expected, "{:?}", report.findings);
        assert!(!report.headline.contains('\n'));
    }
}

#[test]
fn a_problem_has_a_remedy() {
    for (evidence, headline) in cases() {
        for finding in diagnose(&evidence) {
            assert!(
                finding.severity != Severity::Problem || !finding.remedy.is_empty(),
                "{headline}: {finding:?}"
            );
        }
    }
}

#[test]
fn what_the_operator_tells_of_one_pod_is_not_told_twice() {
    let pod = waits("ErrImagePull", "not found");
    let evidence = ClusterEvidence {
        pods: vec![pod],
        ..stalled("ImageUnavailable", "a peer cannot start: ErrImagePull: not found")
    };
    let findings = diagnose(&evidence);
    assert_eq!(findings.len(), 1, "{findings:?}");
    // Without the pods it is all that is known.
    let alone = diagnose(&stalled("ImageUnavailable", "a peer cannot start"));
    assert_eq!(alone[0].line, "a peer cannot start");
}

#[test]
fn pods_of_one_pool_with_one_reason_are_one_finding() {
    let mut evidence =
        unplaced("0/2 nodes are available", &[("n1", "it is cordoned"), ("n2", "it is cordoned")]);
    let mut second = evidence.pods[0].clone();
    second.name = "m-spot-b".into();
    evidence.pods.push(second);
    let findings = diagnose(&evidence);
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].line, "no node matches pool spot: of each of the 2 nodes, it is cordoned");
    assert_eq!(findings[0].evidence[1], "pod m-spot-b is Pending for 90 s");
}

#[test]
fn a_report_is_text_with_the_headline_first() {
    let evidence = ClusterEvidence {
        unread: vec!["you may not list nodes in the whole cluster".into()],
        ..unplaced(
            "0/2 nodes are available",
            &[("n1", "it is not labelled disk=ssd"), ("n2", "it is not labelled disk=ssd")],
        )
    };
    let text = report(&evidence, diagnose(&evidence)).text();
    let text = dunlin_terminal::print::plain(&text);
    let expected = "\
inferenceswarm/m in default is not Ready: no node matches pool spot: none of the 2 nodes is labelled disk=ssd

problem: no node matches pool spot: none of the 2 nodes is labelled disk=ssd
    pod m-spot-a is Pending for 90 s
    the scheduler says: 0/2 nodes are available
    node n1: it is not labelled disk=ssd
    node n2: it is not labelled disk=ssd
  → label or add nodes as the pool asks for, or change its nodeSelector, capacityType or podTemplate.tolerations

not looked at:
    you may not list nodes in the whole cluster";
    assert_eq!(text, expected);
}
