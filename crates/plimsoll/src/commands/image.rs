//! `plimsoll image`.

use plimsoll_model::Name;

use crate::{
    cli::image::{ImageCommand, ImageImportArgs, ImageNameArgs},
    config::Connection,
    failure::{Failure, OrFail as _, Outcome},
    image::{Described, LocalImage},
    output::{self, Output, progress::Progress},
};

/// Runs what was typed.
pub(crate) async fn run(command: ImageCommand, connection: &Connection, output: Output) -> Outcome {
    let client = &connection.client;
    match command {
        ImageCommand::List => list(connection, output).await,
        ImageCommand::Import(args) => import(*args, connection, output).await,
        ImageCommand::Show(args) => {
            let name = &args.name;
            let images = visible(connection).await?;
            let image = images
                .iter()
                .filter(|image| image.name == *name && !(args.public && image.project.is_some()))
                // The project's own goes before a public one, as it does for VMs.
                .max_by_key(|image| image.project.is_some())
                .ok_or_else(|| {
                    Failure::new(format!("there is no image `{name}`"))
                        .hint("`plimsoll image list` shows those that there are")
                })?;
            output.show(image, output::cluster::image)
        }
        ImageCommand::Delete(args) => {
            let ImageNameArgs { name, public } = args.image;
            let owner = owner(connection, public)?;
            output.confirm(&format!("Delete image {name}?"), args.yes)?;
            client
                .delete_image(owner.as_ref(), &name)
                .await
                .or_fail(|| format!("cannot delete image `{name}`"))?;
            super::done(output, "deleted", name.as_str())
        }
    }
}

/// Whose image is meant: the public, or the project that is meant.
fn owner(connection: &Connection, public: bool) -> Outcome<Option<Name>> {
    if public {
        return Ok(None);
    }
    connection
        .project()
        .map(Some)
        .map_err(|failure| failure.hint("name a project, or say --public"))
}

/// The images that the project that is meant can use: its own and the public ones.
async fn visible(connection: &Connection) -> Outcome<Vec<plimsoll_model::Image>> {
    let what = || "cannot list images".to_owned();
    let client = &connection.client;
    let mut images = match connection.project_if_any() {
        Some(project) => client.images(Some(project)).await.or_fail(what)?,
        None => Vec::new(),
    };
    for image in client.images(None).await.or_fail(what)? {
        if !images.iter().any(|known| known.id == image.id) {
            images.push(image);
        }
    }
    Ok(images)
}

async fn list(connection: &Connection, output: Output) -> Outcome {
    let images = visible(connection).await?;
    output.show(&images, |output, images| output::cluster::images(output, images))
}

async fn import(args: ImageImportArgs, connection: &Connection, output: Output) -> Outcome {
    let owner = owner(connection, args.public)?;
    let progress = Progress::new("reading the image");
    let local = match (&args.directory, args.disk) {
        (Some(directory), _) => LocalImage::open(directory, args.name.as_ref())?,
        (None, Some(disk)) => LocalImage::describe(Described {
            name: args
                .name
                .ok_or_else(|| Failure::usage("the image has no name").hint("give --name"))?,
            description: args.description.unwrap_or_default(),
            disk,
            kernel: args.kernel,
            initrd: args.initrd,
            append: args.append,
            min_memory: args.min_memory.unwrap_or_default(),
            guest_agent: args.guest_agent,
        })?,
        (None, None) => return Err(Failure::usage("there is nothing to import")),
    };
    let image = local.import(&connection.client, owner.as_ref(), &progress).await?;
    drop(progress);
    output.show(&image, output::cluster::image)
}
