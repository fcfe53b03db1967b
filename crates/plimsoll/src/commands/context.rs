//! `plimsoll context`.

use plimsoll_model::Name;
use serde::Serialize;

use crate::{
    cli::{GlobalArgs, project::ContextCommand},
    config::{ConfigFile, Context},
    failure::{Failure, Outcome},
    output::{Output, Tone, or_dash},
};

/// A context, for programs.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a Name,
    current: bool,
    #[serde(flatten)]
    context: &'a Context,
}

/// Runs what was typed.
pub(crate) fn run(command: ContextCommand, global: &GlobalArgs, output: Output) -> Outcome {
    let config = ConfigFile::load()?;
    let known = |name: &Name| {
        if config.contexts.contains_key(name) {
            Ok(())
        } else {
            Err(Failure::new(format!("there is no context `{name}`"))
                .hint("`plimsoll context list` shows those that there are"))
        }
    };
    match command {
        ContextCommand::List => list(&config, output),
        ContextCommand::Set(args) => {
            let name = args.name;
            let mut context = config.contexts.get(&name).cloned().unwrap_or_default();
            let absolute = |path: &std::path::PathBuf| std::path::absolute(path);
            if let Some(server) = &global.server {
                context.server.clone_from(server);
            }
            if let Some(ca) = &global.ca {
                context.ca = Some(absolute(ca)?);
            }
            if let Some(file) = &global.token_file {
                context.token_file = Some(absolute(file)?);
            }
            if let Some(project) = &global.project {
                context.project = Some(project.clone());
            }
            if context.server.is_empty() {
                return Err(Failure::usage(format!("context `{name}` would have no server"))
                    .hint("name it with --server"));
            }
            ConfigFile::change(|config| {
                config.contexts.insert(name.clone(), context);
                config.current.get_or_insert_with(|| name.clone());
            })?;
            super::done(output, "written", name.as_str())
        }
        ContextCommand::Use(args) => {
            known(&args.name)?;
            ConfigFile::change(|config| config.current = Some(args.name.clone()))?;
            super::done(output, "current", args.name.as_str())
        }
        ContextCommand::Delete(args) => {
            known(&args.name)?;
            ConfigFile::change(|config| {
                config.contexts.remove(&args.name);
                config.current.take_if(|current| *current == args.name);
            })?;
            super::done(output, "deleted", args.name.as_str())
        }
    }
}

fn list(config: &ConfigFile, output: Output) -> Outcome {
    let listed: Vec<_> = config
        .contexts
        .iter()
        .map(|(name, context)| Listed {
            name,
            current: config.current.as_ref() == Some(name),
            context,
        })
        .collect();
    output.show(&listed, |output, listed| {
        let mut table = output.table(&["", "NAME", "SERVER", "PROJECT"]);
        for item in listed {
            table.add_row([
                output.cell(if item.current { "*" } else { "" }, Tone::Good),
                output.cell(item.name, Tone::Plain),
                output.cell(&item.context.server, Tone::Plain),
                output.cell(or_dash(item.context.project.as_ref()), Tone::Plain),
            ]);
        }
        output.finish(table)
    })
}
