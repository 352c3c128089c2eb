// whycache completion SHELL
#include "cli/completion.h"

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.h"

namespace whycache::cli {
namespace {

struct CompletionArguments {
  std::string shell;
};

ExitCode completion(const CompletionArguments& arguments, Output& output) {
  if (arguments.shell == "bash") {
    output.write(bash_completion());
  } else if (arguments.shell == "zsh") {
    output.write(zsh_completion());
  } else if (arguments.shell == "fish") {
    output.write(fish_completion());
  } else {
    throw Failure(ExitCode::usage, "there is no completion for this shell: name=" + arguments.shell,
                  "give bash, zsh or fish");
  }
  return ExitCode::done;
}

CommandAction prepare_completion(CLI::App& parser) {
  const auto arguments = std::make_shared<CompletionArguments>();
  parser.add_option("SHELL", arguments->shell, "bash, zsh or fish")->type_name("")->required();
  return [arguments](Output& output) { return completion(*arguments, output); };
}

}  // namespace

const Command completion_command{
    "completion", "print a script that completes command lines",
    R"(Prints a script by which a shell completes commands, options and files. The packages install
it for all users.)",
    R"(Examples:
  source <(whycache completion bash)                 now; in ~/.bashrc for every shell
  source <(whycache completion zsh)                  the same in ~/.zshrc, after compinit
  whycache completion fish > ~/.config/fish/completions/whycache.fish

Exit codes: 0 done, 2 there is no such shell)",
    prepare_completion};

}  // namespace whycache::cli
