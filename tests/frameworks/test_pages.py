"""Each framework's own tool accepts the files of its page as they are, and db_setup runs when it has to."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import pages

from frameworks import tools

pytestmark = pytest.mark.timeout(900)  # the first one installs the tools

MIGRATION = "lambda/db_setup/migrations/002_orders.sql"
NEEDED = {"DB_SECRET_NAME", "DB_USER_SECRET_NAME", "DB_PROXY"}


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The project of somebody who did what the page says."""
    return pages.project(tmp_path, f"frameworks/{request.param}.md")


def of_type(template: dict[str, Any], kind: str) -> dict[str, Any]:
    return {key: each for key, each in template["Resources"].items() if each["Type"] == kind}


def only(template: dict[str, Any], kind: str) -> Any:
    [resource] = of_type(template, kind).values()
    return resource


def checked(template: dict[str, Any]) -> dict[str, Any]:
    """What every function must have; returns its properties."""
    function: dict[str, Any] = next(
        each["Properties"]
        for each in of_type(template, "AWS::Lambda::Function").values()
        if each["Properties"].get("Handler") == "initializer.handler"
    )
    assert (function["Runtime"], function["Timeout"], function["MemorySize"]) == ("python3.13", 300, 512)
    assert set(function["Environment"]["Variables"]) == NEEDED
    assert len(function["Layers"]) == 1
    assert set(function["VpcConfig"]) == {"SubnetIds", "SecurityGroupIds"}
    statements = json.dumps([each["Properties"] for each in template["Resources"].values() if "IAM" in each["Type"]])
    assert "secretsmanager:GetSecretValue" in statements
    assert "secretsmanager:PutSecretValue" in statements
    return function


def unretried(template: dict[str, Any]) -> Any:
    """That a failure is not repeated; returns what of the function that is said of."""
    retries = only(template, "AWS::Lambda::EventInvokeConfig")["Properties"]
    assert retries["MaximumRetryAttempts"] == 0
    return retries["Qualifier"]


# --- CDK ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("project", ["cdk-python"], indirect=True)
def test_cdk_python_app_triggers_after_all_that_it_needs_and_again_when_the_folder_changes(project: Path) -> None:
    """The app synthesises and is valid; a new migration makes a new version, which is what the trigger runs."""
    before = synthesised(project)
    tools.lint(next((project / "cdk.out").glob("*.template.json")), "W3005", "W3691")
    (project / MIGRATION).write_text("SELECT 1;")
    (project / "lambda/db_setup/__pycache__").mkdir()
    (project / "lambda/db_setup/__pycache__/x.pyc").write_text("")

    after = synthesised(project)

    checked(before)
    trigger = only(before, "Custom::Trigger")
    kinds = ("RDS::DBInstance", "EC2::SecurityGroupIngress", "EC2::VPCEndpoint", "SecretsManager::Secret")
    needed = [key for kind in kinds for key in of_type(before, f"AWS::{kind}")]
    assert len(needed) == 7
    assert set(needed) <= set(trigger["DependsOn"])
    waiting = [key for key, each in before["Resources"].items() if "DbSetupTrigger" in str(each.get("DependsOn"))]
    assert [key.startswith("Application") for key in waiting] == [True]
    assert trigger["Properties"]["HandlerArn"] != only(after, "Custom::Trigger")["Properties"]["HandlerArn"]


def synthesised(project: Path) -> dict[str, Any]:
    tools.call([tools.python() / "python", "app.py"], project, CDK_OUTDIR="cdk.out")
    [template] = (project / "cdk.out").glob("*.template.json")
    text: dict[str, Any] = json.loads(template.read_text())
    return text


# --- SAM ------------------------------------------------------------------------------------------------------------

TRANSFORM = """
import json, sys
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse
from samtranslator.parser.parser import Parser

class NoPolicies:
    def load(self): return {}

template = yaml_parse(open("template.yaml").read())
template["Resources"]["DbSetup"]["Properties"]["CodeUri"] = "s3://bucket/" + sys.argv[1]
template["Resources"]["Psycopg"]["Properties"]["ContentUri"] = "s3://bucket/" + sys.argv[2]
print(json.dumps(transform(template, {}, NoPolicies())))
"""


@pytest.mark.parametrize("project", ["sam"], indirect=True)
def test_sam_template_is_valid_and_builds(project: Path) -> None:
    """SAM's own validation and build, without an account."""
    tools.call(["sam", "validate", "--lint", "--template", "template.yaml"], project)

    said = tools.call(
        ["sam", "build", "--template", "template.yaml"], project, SAM_CLI_CONTAINER_CONNECTION_TIMEOUT="1"
    )

    assert "Build Succeeded" in said
    assert (project / ".aws-sam/build/DbSetup/initializer.py").exists()
    assert (project / ".aws-sam/build/DbSetup/migrations/001_initial_schema.sql").exists()


@pytest.mark.parametrize("project", ["sam"], indirect=True)
def test_sam_custom_resource_changes_with_the_folder_and_with_the_layer(project: Path) -> None:
    """SAM uploads under a hash of the content: another one makes another version, and the resource shows it."""

    def resource(folder: str, layer: str) -> Any:
        said = tools.call([tools.python() / "python", "-W", "ignore", "-c", TRANSFORM, folder, layer], project)
        template = json.loads(said.splitlines()[-1])
        function = checked(template)
        assert function["Code"]["S3Key"] == folder
        assert unretried(template) == "$LATEST"
        return only(template, "Custom::DbSetup")["Properties"]

    same, folder, layer = resource("a", "b"), resource("c", "b"), resource("a", "d")

    assert same == resource("a", "b")
    assert (same["ServiceToken"], same["ServiceTimeout"]) == ({"Fn::GetAtt": ["DbSetup", "Arn"]}, 360)
    assert folder["Version"] != same["Version"]
    assert layer["Layer"] != same["Layer"]
    assert same["ServiceToken"] == folder["ServiceToken"] == layer["ServiceToken"]  # CloudFormation allows no other


# --- CloudFormation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("project", ["cloudformation"], indirect=True)
def test_cloudformation_template_is_valid_and_answers_for_the_folder(project: Path) -> None:
    """What cfn-lint knows of CloudFormation's schemas; and the resource has what changes with the folder."""
    tools.lint(project / "template.yaml")

    template = decoded(project)

    checked(template)
    assert unretried(template) == "$LATEST"
    code = only(template, "AWS::Lambda::Function")["Properties"]["Code"]
    migrations = only(template, "Custom::DbSetup")
    assert migrations["Properties"]["Code"] == code["S3Key"] == {"Ref": "CodeKey"}
    assert migrations["Properties"]["Layer"] == {"Ref": "Psycopg"}
    assert migrations["DependsOn"] == "NoRetries"


def decoded(project: Path) -> dict[str, Any]:
    """The template with its short forms written out, as cfn-lint reads it."""
    code = "import sys, json, cfnlint.decode as d; print(json.dumps(d.decode(sys.argv[1])[0]))"
    template: dict[str, Any] = json.loads(tools.call([sys.executable, "-c", code, "template.yaml"], project))
    return template


# --- Serverless -----------------------------------------------------------------------------------------------------

NO_STACK = (
    b"<ErrorResponse><Error><Type>Sender</Type><Code>ValidationError</Code>"
    b"<Message>Stack with id shop-db-setup-dev does not exist</Message></Error></ErrorResponse>"
)


@pytest.fixture
def nothing_deployed() -> Iterator[str]:
    """CloudFormation, which knows no stack yet: osls asks before it packages a layer."""
    with tools.endpoint(lambda *_: (400, {"Content-Type": "text/xml"}, NO_STACK)) as url:
        yield url


@pytest.mark.parametrize("project", ["serverless"], indirect=True)
def test_serverless_packages_a_valid_template_whose_resource_changes_with_the_folder(
    project: Path, nothing_deployed: str
) -> None:
    """osls packages what the page shows, with the page's own commands but for the last word."""

    def packaged() -> dict[str, Any]:
        commands = pages.commands("frameworks/serverless.md").replace("npx osls deploy", f"'{tools.osls()}' package")
        tools.call(["sh", "-euc", commands], project, AWS_ENDPOINT_URL=nothing_deployed, NODE_NO_WARNINGS="1")
        template = project / ".serverless" / "cloudformation-template-update-stack.json"
        text: dict[str, Any] = json.loads(template.read_text())
        return text

    before = packaged()
    tools.lint(project / ".serverless" / "cloudformation-template-update-stack.json")
    (project / MIGRATION).write_text("SELECT 1;")
    after = packaged()

    checked(before)
    assert unretried(before) == "$LATEST"
    first, then = (only(each, "Custom::DbSetup")["Properties"] for each in (before, after))
    assert (first["ServiceTimeout"], first["ServiceToken"]) == (360, {"Fn::GetAtt": ["DbSetupLambdaFunction", "Arn"]})
    assert re.fullmatch("[0-9a-f]{16}", first["Folder"])
    assert first["Folder"] != then["Folder"]
    assert {**first, "Folder": ""} == {**then, "Folder": ""}


# --- Terraform ------------------------------------------------------------------------------------------------------

PARSE = "import sys, json, hcl2; print(json.dumps(hcl2.load(open(sys.argv[1]))))"
SCHEMA = json.loads(Path(__file__).with_name("terraform_schema.json").read_text())["types"]
REFERENCE = re.compile(r"\b(data\.)?((?:aws|archive)_\w+)\.(\w+)(?:\.(\w+))?")


def configuration(project: Path) -> dict[str, dict[tuple[str, str], dict[str, Any]]]:
    """The blocks by kind, type and name, without what the parser adds."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key.strip('"'): plain(inner) for key, inner in value.items() if not key.startswith("__")}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    parsed = plain(json.loads(tools.call([tools.python() / "python", "-c", PARSE, "db_setup.tf"], project)))
    found: dict[str, dict[tuple[str, str], dict[str, Any]]] = {"resource": {}, "data": {}}
    for kind, blocks in found.items():
        for block in parsed[kind]:
            [(what, named)] = block.items()
            [(name, body)] = named.items()
            blocks[what, name] = body
    return found


def complaints(body: dict[str, Any], arguments: dict[str, Any], where: str) -> list[str]:
    """Arguments that the provider does not know, and those that it misses."""
    said = [f"{where}.{name} is unknown" for name in body if name not in (*arguments, "depends_on")]
    for name, what in arguments.items():
        if name not in body:
            required = what == "required" or (isinstance(what, dict) and what["required"])
            said += [f"{where}.{name} is missing"] if required else []
        elif isinstance(what, dict):
            for block in body[name] if isinstance(body[name], list) else [body[name]]:
                said += complaints(block, what["block"], f"{where}.{name}")
    return said


@pytest.mark.parametrize("project", ["terraform"], indirect=True)
def test_terraform_arguments_are_those_of_the_providers(project: Path) -> None:
    """No argument that the provider does not know, and none missing that it needs."""
    found = configuration(project)

    everything = [(what, name, body) for kind in found.values() for (what, name), body in kind.items()]
    assert len(everything) == 10
    said = [each for what, name, body in everything for each in complaints(body, SCHEMA[what]["arguments"], what)]
    assert said == []


def test_terraform_complaints_are_made() -> None:
    """The comparison above sees what it is meant to see."""
    arguments = SCHEMA["aws_lambda_function"]["arguments"]
    body = {"function_name": "x", "role": "y", "memory": 1, "vpc_config": {"subnet_ids": []}}

    assert complaints(body, arguments, "f") == ["f.memory is unknown", "f.vpc_config.security_group_ids is missing"]


@pytest.mark.parametrize("project", ["terraform"], indirect=True)
def test_terraform_references_lead_somewhere_and_the_invocation_follows_the_folder(project: Path) -> None:
    """Each reference names a block that is there and an attribute that it has."""
    found = configuration(project)
    text = (project / "db_setup.tf").read_text()
    used = set()

    for data, what, name, attribute in REFERENCE.findall(re.sub(r"^(resource|data) .*$|#.*$", "", text, flags=re.M)):
        assert (what, name) in found["data" if data else "resource"], f"{what}.{name}"
        schema = SCHEMA[what]
        known = {each.replace("_", "") for each in (*schema["attributes"], *schema["arguments"])}
        assert not attribute or attribute.replace("_", "") in known, f"{what}.{attribute}"
        used.add(f"{what}.{attribute}")

    assert {"archive_file.output_base64sha256", "aws_lambda_layer_version.arn"} <= used
    triggers = found["resource"]["aws_lambda_invocation", "db_setup"]["triggers"]
    assert triggers["folder"] == "${data.archive_file.db_setup.output_base64sha256}"
    assert set(re.findall(r"\bvar\.(\w+)", text)) == set(re.findall(r'^variable "(\w+)"', text, re.M))
    function = found["resource"]["aws_lambda_function", "db_setup"]
    environment = function["environment"]
    [environment] = environment if isinstance(environment, list) else [environment]
    assert set(environment["variables"]) == NEEDED


# --- From a pipeline ------------------------------------------------------------------------------------------------

REPORT = {"status": "ok", "applied": []}
ERROR = {"errorType": "MigrationError", "errorMessage": '004_paid.sql:3: column "payed_at" does not exist (42703).'}


def answers(function_error: str, payload: dict[str, Any]) -> Callable[[str, str, bytes], tools.Answer]:
    """Lambda's answers: first that the function is up to date, then what came of the invocation."""

    def answer(method: str, path: str, body: bytes) -> tools.Answer:
        if path.endswith("/invocations"):
            headers = {"X-Amz-Function-Error": function_error} if function_error else {}
            return 200, {**headers, "X-Amz-Executed-Version": "$LATEST"}, json.dumps(payload).encode()
        return 200, {}, json.dumps({"FunctionName": "db-setup", "LastUpdateStatus": "Successful"}).encode()

    return answer


def migrate(tmp_path: Path, failing: bool, function_error: str, payload: dict[str, Any]) -> str:
    (tmp_path / "migrate.sh").write_text(pages.files("other-frameworks.md")["migrate.sh"])
    with tools.endpoint(answers(function_error, payload)) as url:
        return tools.call(["sh", "migrate.sh", "db-setup"], tmp_path, failing, AWS_ENDPOINT_URL=url)


def test_pipeline_script_with_the_aws_cli_succeeds_when_the_function_does(tmp_path: Path) -> None:
    """The real AWS CLI, and a Lambda that answers with the report."""
    assert json.loads(migrate(tmp_path, False, "", REPORT)) == REPORT


@pytest.mark.parametrize("error", ["Unhandled", "Handled"])
def test_pipeline_script_with_the_aws_cli_fails_when_the_function_does(tmp_path: Path, error: str) -> None:
    """The real AWS CLI exits with 0 here; the script does not, and shows the message."""
    assert json.loads(migrate(tmp_path, True, error, ERROR)) == ERROR
