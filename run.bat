@echo off
rem Run the fetcher, either with the inputs that customize.py puts in the environment or with command-line arguments.
setlocal DisableDelayedExpansion
set "main=%~dp0imagenet_aux\__main__.py"
if not defined CM_IMAGENET_AUX_PYTHON set "CM_IMAGENET_AUX_PYTHON=python"
if "%~1"=="" goto inputs
"%CM_IMAGENET_AUX_PYTHON%" "%main%" fetch %*
exit /b %ERRORLEVEL%

:inputs
rem With delayed expansion, cmd does not interpret characters such as %%20 and & in the values.
setlocal EnableDelayedExpansion
set "options="
if defined CM_IMAGENET_AUX_RESULT (
  set "options="--into=!CM_IMAGENET_AUX_INTO!" "--result=!CM_IMAGENET_AUX_RESULT!" --pid=!CM_IMAGENET_AUX_PID! !CM_IMAGENET_AUX_REPLACE!"
) else (
  set "CM_IMAGENET_AUX_SOURCE=!CM_WGET_URL!"
)
"!CM_IMAGENET_AUX_PYTHON!" "!main!" fetch "--checksum=!CM_IMAGENET_AUX_CHECKSUM!" !options! -- "!CM_IMAGENET_AUX_SOURCE!"
rem Always exit with 0: postprocess reports the error in the result file.
if defined CM_IMAGENET_AUX_RESULT exit /b 0
exit /b !ERRORLEVEL!
