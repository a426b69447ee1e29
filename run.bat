@echo off
rem Start the fetcher: with the inputs that customize.py puts into the environment, or, by hand, with the arguments.
setlocal DisableDelayedExpansion
set "main=%~dp0imagenet_aux\__main__.py"
if not defined CM_IMAGENET_AUX_PYTHON set "CM_IMAGENET_AUX_PYTHON=python"
if defined CM_IMAGENET_AUX_RESULT goto inputs
if "%~1"=="" goto inputs
"%CM_IMAGENET_AUX_PYTHON%" "%main%" fetch %*
exit /b %ERRORLEVEL%

:inputs
rem Delayed expansion keeps cmd from acting on %%20 and on & in a value.
setlocal EnableDelayedExpansion
set "options="
if defined CM_IMAGENET_AUX_RESULT (
  set "options="--into=!CM_IMAGENET_AUX_INTO!" "--result=!CM_IMAGENET_AUX_RESULT!" !CM_IMAGENET_AUX_REPLACE!"
) else (
  set "CM_IMAGENET_AUX_SOURCE=!CM_WGET_URL!"
)
"!CM_IMAGENET_AUX_PYTHON!" "!main!" fetch "--checksum=!CM_IMAGENET_AUX_CHECKSUM!" !options! -- "!CM_IMAGENET_AUX_SOURCE!"
rem The hooks read the error in the result file, so they need an exit code of 0.
if defined CM_IMAGENET_AUX_RESULT exit /b 0
exit /b !ERRORLEVEL!
