//! The finding in words: the rule, and the way to extend it.

use super::{
    Question,
    judge::Found,
    ranges,
    rules::{Action, Chain, Fate, Kind, Rule},
};

/// Commands in one message; more would hide the rest of it.
const COMMANDS: usize = 4;

pub fn explain(found: &Found, question: &Question, is_v4: bool) -> String {
    let Question { api_port, relay_ports, .. } = question;
    let relay = format!("{}-{}", relay_ports.start(), relay_ports.end());
    let denied = place(&found.denied);
    let accepted = match found.accepted.rule {
        Some(_) => format!(", while {} lets them into a relay port", place(&found.accepted)),
        None => String::new(),
    };
    // 0 stands for everybody that no rule names.
    let example = match ranges::address(found.source, is_v4) {
        Some(address) if found.source != 0 => format!(" such as {address}"),
        Some(_) | None => String::new(),
    };
    let commands = commands(found);
    let extend = if commands.is_empty() {
        format!("let this firewall treat TCP ports {relay} as it treats {api_port}")
    } else {
        format!("extend the rules to the relay ports, on every controller: {}", commands.join("; "))
    };
    let keeper =
        keeper(found).map(|tool| format!(" ({tool} writes these rules: use it)")).unwrap_or_default();
    format!(
        "{denied} keeps clients{example} from TCP port {api_port}{accepted}, and a relay would let them in; \
         {extend}{keeper}; or list their networks in api.deny; or set api.trust_firewall = true if the firewall is \
         settled otherwise"
    )
}

/// The rule or the policy that has decided.
fn place(fate: &Fate) -> String {
    match (fate.chain, fate.rule) {
        (Some(chain), Some(rule)) => {
            let Kind::Nft(family) = &chain.table.kind else {
                return format!("the rule `{}` of table {}", rule.words.text, chain.table.name);
            };
            let (table, name) = (&chain.table.name, &chain.name);
            let handle = format!("handle {}", rule.words.number);
            let text =
                if rule.words.text == handle { String::new() } else { format!(" `{}`", rule.words.text) };
            format!("the rule{text} ({family} {table} {name} {handle})")
        }
        (Some(chain), None) => format!("the policy of chain {} in table {}", chain.name, chain.table.name),
        (None, _) => "no rule".to_owned(),
    }
}

/// The commands to copy: every rule that names only the API port is extended, and a rule goes that accepts more at the
/// relay ports.
fn commands(found: &Found) -> Vec<String> {
    let Some(table) = found.denied.chain.map(|chain| &chain.table) else { return Vec::new() };
    let here: Vec<&Rule> =
        found.api_only.iter().filter(|(chain, _)| chain.table == *table).map(|(_, rule)| *rule).collect();
    let mut commands: Vec<String> = Vec::new();
    // iptables' new rules move the later ones down, so the last one is the first to do.
    for rule in here.iter().rev() {
        match &rule.words.extend {
            Some(command) if !commands.contains(command) => commands.push(command.clone()),
            Some(_) => {}
            None => return Vec::new(),
        }
    }
    let is_extended = |rule: &Rule| here.iter().any(|one| std::ptr::eq(*one, rule));
    if let Some(rule) = found.accepted.rule
        && !found.denied.rule.is_some_and(is_extended)
        && rule.action == Action::Accept
        && !is_extended(rule)
        && speaks_of_ports(rule)
        && !commands.is_empty()
    {
        commands.push(rule.words.delete.clone());
    }
    commands.truncate(COMMANDS);
    commands
}

fn speaks_of_ports(rule: &Rule) -> bool {
    rule.matches.iter().any(|one| matches!(one.test, super::rules::Test::Ports(_)))
}

/// The tool that writes the rules anew when it starts, if its names are known.
fn keeper(found: &Found) -> Option<&'static str> {
    let chains = found.api_only.iter().map(|(chain, _)| *chain).chain(found.denied.chain);
    chains.into_iter().find_map(|chain: &Chain| {
        if chain.table.name == "firewalld" {
            Some("firewalld")
        } else if chain.name.starts_with("ufw") {
            Some("ufw")
        } else {
            None
        }
    })
}
